"""One continuation of a text, streamed to stdout as it is.

In: a model, a prompt, options. Out: text; an exit code.
"""

from __future__ import annotations

import sys

from chuan.inference.language_model import LanguageModel
from chuan.inference.sampling import SamplingOptions
from chuan.terminal.render import clean_text


def run_generate(model: LanguageModel, prompt: str, options: SamplingOptions) -> int:
    """Writes only what the model adds; Ctrl-C ends it with a whole line."""
    pieces = model.stream_text(prompt, options)
    try:
        for piece in pieces:
            sys.stdout.write(clean_text(piece.text))
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    finally:
        sys.stdout.write("\n")
    return 0
