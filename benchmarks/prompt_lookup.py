"""What prompt lookup gains: a text rewritten with drafts and without, by turns in one process.

    python benchmarks/prompt_lookup.py --text FILE [--model smollm2-135m] [--bits 8] [--rounds 5]

The first 400 words of FILE are given to the model to be written again with its spelling mended; beside it a free story,
where nothing can be copied. Greedy: the ids must be the same. Prints the acceptance rate and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from machine import describe_machine

import chuan
from chuan.chat.messages import Message
from chuan.inference.language_model import LanguageModel
from chuan.inference.request import Generation
from chuan.inference.sampling import SamplingOptions

WORDS = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="plain text of 400 words or more")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    words = given.text.read_text(encoding="utf-8").split()[:WORDS]
    if len(words) < WORDS:
        raise SystemExit(f"{given.text} has {len(words)} words, {WORDS} are needed")
    print(describe_machine())
    model = chuan.load(given.model, bits=given.bits, device="cpu")
    tasks = {
        f"rewriting {WORDS} words": "Write this text again, word for word, with its spelling mended:\n\n"
        + " ".join(words),
        "a free story": "Tell me a story about a river and a bridge.",
    }
    print(f"{given.model}, {given.bits} bits, greedy, {given.rounds} rounds, medians\n")
    print("| task | tokens | drafted | accepted | plain, tok/s | with lookup, tok/s | gain |\n" + "|---" * 7 + "|")
    for name, task in tasks.items():
        print(measure(model, name, task, given.rounds), flush=True)


def measure(model: LanguageModel, name: str, task: str, rounds: int) -> str:
    """One row of the table; stops where the two ways give different ids. The prompt is read once and kept."""
    engine, chat_format = model.engine, model.chat_format
    options = SamplingOptions(temperature=0.0, max_new_tokens=700)
    prompt = chat_format.render([Message("user", task)], engine.context_length, options.max_new_tokens)
    stop_ids = model.stop_ids | set(chat_format.stop_ids)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    requests: dict[bool, Generation] = {}
    for turn in range(rounds + 1):
        for speculate in (False, True) if turn % 2 else (True, False):
            engine.speculate = speculate
            requests[speculate] = engine.build_generation(prompt, options, stop_ids)
            start = time.perf_counter()
            engine.complete([requests[speculate]])
            if turn:  # the first reads the prompt
                seconds[speculate].append(time.perf_counter() - start)
    if requests[False].completion_ids != requests[True].completion_ids:
        raise SystemExit(f"{name}: drafts changed the answer")
    count, drafted, accepted = (
        getattr(requests[True], f"{what}_tokens") for what in ("completion", "proposed", "accepted")
    )
    plain, fast = (statistics.median(seconds[speculate]) for speculate in (False, True))
    return (
        f"| {name} | {count} | {drafted} | {accepted} ({accepted / max(drafted, 1):.0%}) | {count / plain:.1f} | "
        f"{count / fast:.1f} | {plain / fast:.2f} x |"
    )


if __name__ == "__main__":
    main()
