"""Which model these files are, without reading all of them.

In: a model's folder (its weights, tokenizer and configuration) or file. Out: a digest. A run that was ended goes on
with the same weights or not at all, and a folder that was trained further is another model under the same name.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_SAMPLES, _SAMPLE = 64, 4096
_KINDS = {".safetensors", ".bin", ".gguf", ".model", ".json"}


def digest_weights(path: Path) -> str:
    """SHA-256 over names, sizes and 64 samples of 4 KiB of each file; where the model lies and since when is not in it.

    Weights that were trained, rounded or swapped differ nearly everywhere, so samples see it; one flipped byte is not
    seen, which is what the checksums of files are for.
    """
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in _KINDS):
        size = file.stat().st_size
        # The name of a single file is its user's business.
        digest.update(f"{'' if file == path else file.name} {size}\n".encode("utf-8", "surrogateescape"))
        with file.open("rb") as stream:
            for sample in range(_SAMPLES):
                stream.seek(max(0, size - _SAMPLE) * sample // (_SAMPLES - 1), os.SEEK_SET)
                digest.update(stream.read(_SAMPLE))
                if size <= _SAMPLE:
                    break
    return digest.hexdigest()
