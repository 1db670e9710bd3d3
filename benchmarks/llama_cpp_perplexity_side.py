"""How well a GGUF predicts some ids, by llama-cpp-python: `llama_cpp_perplexity_side.py MODEL IDS.json ANSWER.json`.

The first file holds lists of ids; the answer, for each, minus the log-probabilities of its second id and all after it.
"""

from __future__ import annotations

import json
import sys

import llama_cpp
import numpy as np


def main() -> None:
    model, ids_path, answer_path = sys.argv[1:]
    with open(ids_path, encoding="utf-8") as file:
        windows = json.load(file)
    length = max(len(ids) for ids in windows)
    llm = llama_cpp.Llama(model, n_ctx=length, logits_all=True, verbose=False, n_threads=2)
    losses = []
    for ids in windows:
        llm.reset()
        llm.eval(ids)
        logits = np.array(llm.scores[: len(ids) - 1], dtype=np.float64)
        largest = logits.max(axis=1)
        total = np.log(np.exp(logits - largest[:, None]).sum(axis=1)) + largest
        losses.append((total - logits[np.arange(len(ids) - 1), ids[1:]]).tolist())
    with open(answer_path, "w", encoding="utf-8") as file:
        json.dump({"version": llama_cpp.__version__, "losses": losses}, file)


if __name__ == "__main__":
    main()
