"""What `chuan evaluate --text` does: how well a model predicts a text, by language and by position.

In: the options of the command line. Out: text.json and positions.png in a folder for each width of weights, tables on
stdout; an exit code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chuan.errors import ChuanError
from chuan.evaluation.backends.chuan import ChuanBackend
from chuan.evaluation.options import name_folder, read_widths
from chuan.evaluation.perplexity import (
    Bucket,
    TextLoss,
    measure_languages,
    measure_positions,
    save_positions_plot,
)
from chuan.evaluation.show import print_positions, print_text
from chuan.inference.load import load
from chuan.json_file import save_json
from chuan.staging import staged_file

FORMAT = "chuan-text-1"


def run_text(
    model: str,
    text: str,
    context: int | None,
    stride: int | None,
    longest: int | None,
    bits: str | None,
    device: str,
    dtype: str,
    output: str,
) -> int:
    """A text at every width of weights. Raises ChuanError for a file that is no text."""
    path = Path(text)
    content = read_text(path)
    if model.startswith("hf:"):
        raise ChuanError(f"a text is read by our own engine alone; name {model.removeprefix('hf:')} without hf:")
    if longest is not None and longest < 2:
        raise ChuanError(f"--longest {longest} leaves nothing to predict; give 2 or more")
    measured = []
    for width in read_widths(bits):
        language_model = load(model, bits=width, device=device, dtype=dtype)  # type: ignore[arg-type]
        facts = dataclasses.asdict(ChuanBackend(language_model).facts)
        decoder, tokenizer = language_model.decoder, language_model.tokenizer
        trained = decoder.config.context_length
        ids = [*tokenizer.prompt_prefix, *tokenizer.encode(content)]
        if longest is not None and len(ids) < longest:
            raise ChuanError(f"{text} has {len(ids):,} tokens, fewer than --longest {longest:,}; give a longer text")
        losses = measure_languages(decoder, tokenizer, content, context, stride)
        window = longest if longest is not None else min(len(ids), trained)
        buckets = measure_positions(decoder, ids, window, max(1, min(512, window // 8)))
        folder = Path(output) / name_folder("text", path.stem, facts["model"], facts["bits"], facts["dtype"])
        described = {
            "format": FORMAT,
            **{name: facts[name] for name in ("model", "bits", "dtype", "device", "parameters", "weights_sha256")},
            "text": path.name,
            "text_sha256": hashlib.sha256(content.encode()).hexdigest(),
            "context": context if context is not None else trained,
            "stride": stride,
            "trained_context": trained,
            "languages": {name: describe_loss(loss) for name, loss in losses.items()},
            "window": window,
            "positions": [dataclasses.asdict(bucket) | {"perplexity": math.exp(bucket.loss)} for bucket in buckets],
        }
        save_text(folder, described, buckets)
        measured.append((described, folder))
        del language_model, decoder  # before the next width is loaded
    print_text([described for described, _ in measured])
    print_positions([described for described, _ in measured])
    for _, folder in measured:
        print(folder)
    return 0


def read_text(path: Path) -> str:
    """The whole file, with the newlines that it has."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ChuanError(f"{path} cannot be read: {error.strerror}; give a text file") from None
    except UnicodeDecodeError:
        raise ChuanError(f"{path} is not UTF-8; convert it, or give another text file") from None


def describe_loss(loss: TextLoss) -> dict[str, float]:
    """Counts and figures."""
    figures = {"perplexity": loss.perplexity, "bits_per_byte": loss.bits_per_byte}
    return {"nats": loss.nats, "tokens": loss.tokens, "bytes": loss.size, **figures}


def save_text(folder: Path, described: Mapping[str, Any], buckets: Sequence[Bucket]) -> None:
    """Figures and plot, each whole or not there; what an earlier run left is replaced."""
    with staged_file(folder / "positions.png") as path:
        save_positions_plot(buckets, described["trained_context"], path)
    with staged_file(folder / "text.json") as path:
        save_json(path, described)
