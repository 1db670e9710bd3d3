"""The process that sentencepiece trains in: it can be ended at any moment, which its library cannot.

In: one line of JSON on stdin, the trainer's options. Out: the files that they name; the trainer's log on stderr. Ends
when stdin is closed, so that it never outlives the process that began it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

import sentencepiece


def main() -> None:
    """Trains; exit code 2 and the reason as the last line where the trainer refuses."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that began it hears of it and decides
    options = json.loads(sys.stdin.readline())
    threading.Thread(target=_follow, daemon=True).start()
    try:
        sentencepiece.SentencePieceTrainer.train(**options)
    except (RuntimeError, OSError, ValueError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)


def _follow() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
