"""A model of lm-evaluation-harness over our engine.

In: the harness's requests, as text. Out: log-probabilities and texts, in the order of the requests. Texts are cut into
tokens where its own models for transformers cut them, so that scores can be compared request by request. Control
strings in a text stay the characters they are. Letter: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm

from chuan.errors import ChuanError
from chuan.inference.load import load
from chuan.inference.request import Generation, Scoring
from chuan.inference.sampling import SamplingOptions

# Requests that are finished together, and rows of V logits that they may hold: 2,048 of 64,000 are 0.5 GB.
_AT_ONCE, _ROWS = 128, 2048
# Rows of one request: a longer continuation is scored in parts, each of which finds those before it in the cache.
_PART = 512
_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
# What tasks say of generation, and greedy decoding says already.
_HARMLESS = ("do_sample", "until", "max_gen_toks")


class ChuanLM(TemplateLM):
    """`--model chuan --model_args pretrained=MODEL[,bits=8,dtype=float32,max_length=2048]`; MODEL as `chuan.load`.

    Sizes of batches are the engine's own business: `batch_size` is taken and not looked at. Chat templates are not
    applied; `chuan evaluate --mode chat` asks by messages.
    """

    def __init__(
        self,
        pretrained: str,
        bits: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        max_length: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if device == "cuda:0" and not torch.cuda.is_available():
            device = "auto"  # the command line says so where the user said nothing
        self._model = load(str(pretrained), bits=bits, device=device, dtype=dtype)  # type: ignore[arg-type]
        longest = self._model.engine.context_length
        if max_length is not None and not 0 < max_length <= longest:
            raise ChuanError(f"max_length={max_length} does not fit the context of {longest}; leave it out")
        self.max_length = max_length or longest

    @property
    def eot_token_id(self) -> int:
        known = (self._model.tokenizer.eos_id, *sorted(self._model.stop_ids))
        return next(token_id for token_id in known if token_id is not None)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        bos = self._model.tokenizer.bos_id
        return bos if bos is not None else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        return self._model.name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        prefix = () if add_special_tokens is False else self._model.tokenizer.prompt_prefix
        return [*prefix, *self._model.tokenizer.encode(string)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows, owners = [], []
        for owner, (text,) in enumerate(request.args for request in requests):
            ids = self.tok_encode(text)
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((("", ""), *make_disjoint_window(window)))
                owners.append(owner)
        sums = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            sums[owner] += nats
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        replies: list[str] = []
        for start in tqdm(range(0, len(requests), _AT_ONCE), "Generating", disable=disable_tqdm):
            batch = [self._build_generation(*request.args) for request in requests[start : start + _AT_ONCE]]
            self._model.engine.complete(batch)
            replies += ["".join(increment.text for increment in request.increments) for request in batch]
        return replies

    def _build_generation(self, context: str, wishes: dict[str, Any]) -> Generation:
        wishes = dict(normalize_gen_kwargs(wishes))
        unknown = [name for name in wishes if name not in (*_OPTIONS, *_HARMLESS)]
        if unknown:
            raise ChuanError(f"a task asks for {unknown[0]}={wishes[unknown[0]]} in generation, which Chuan has not")
        until = [wishes["until"]] if isinstance(wishes.get("until"), str) else wishes.get("until") or []
        longest = wishes["max_gen_toks"]
        options = SamplingOptions(
            **{name: wishes[name] for name in _OPTIONS if wishes.get(name) is not None},
            max_new_tokens=longest,
            stop=tuple(text for text in until if text),
        )
        ids = self.tok_encode(context)[-max(1, self.max_length - longest) :]
        return self._model.engine.build_generation(ids, options, self._model.stop_ids)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(sum of log-probabilities in nats, whether greedy decoding would say the same) of each continuation."""
        # Options of one question differ in their last token alone: what comes before it is run once.
        shared: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                raise ChuanError(f"a continuation of {len(continuation)} tokens does not fit {self.max_length}")
            shared.setdefault(tuple([*context, *continuation][-(self.max_length + 1) : -1]), []).append(number)
        found = [(0.0, True)] * len(requests)
        with tqdm(total=len(requests), desc="Scoring", disable=disable_tqdm) as bar:
            for batch in self._batch(shared, requests):
                self._model.engine.complete([request for request, *_ in batch])
                for request, end, known in batch:
                    for number in shared[known]:
                        nats, greedy = _score(request.logits, end, known, requests[number][2])
                        found[number] = (found[number][0] + nats, found[number][1] and greedy)
                        bar.update(end == len(known))
        return found

    def _batch(
        self,
        shared: dict[tuple[int, ...], list[int]],
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
    ) -> Iterator[list[tuple[Scoring, int, tuple[int, ...]]]]:
        """Requests for the last rows of `known[:end]`, as many as may be held at once."""
        batch: list[tuple[Scoring, int, tuple[int, ...]]] = []
        for known, numbers in shared.items():
            rows = max(len(requests[number][2]) for number in numbers)
            for first in range(len(known) - rows, len(known), _PART):
                end = min(first + _PART, len(known))
                batch.append((self._model.engine.build_scoring(known[:end], end - first), end, known))
                if len(batch) == _AT_ONCE or sum(request.keep for request, *_ in batch) >= _ROWS:
                    yield batch
                    batch = []
        if batch:
            yield batch


def _score(logits: Tensor, end: int, known: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """What rows up to `end` say of the part of a continuation that they predict; `known` lacks only its last token."""
    begins = len(known) + 1 - len(continuation)  # where it stands among all tokens
    first = max(end - len(logits) + 1, begins)
    targets = torch.tensor(continuation[first - begins : end + 1 - begins], dtype=torch.long)
    rows = logits[len(logits) - len(targets) :]
    chosen = rows.log_softmax(-1).gather(1, targets[:, None])
    return float(chosen.sum()), bool((rows.argmax(-1) == targets).all())


def register(models: ModuleType) -> None:
    """Called once `lm_eval.models` is imported."""
    if "chuan" not in model_registry:
        model_registry.register("chuan", target=ChuanLM)
