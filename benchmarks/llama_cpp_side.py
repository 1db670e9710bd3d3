"""What llama-cpp-python says about a GGUF, in a process of its own: `llama_cpp_side.py MODEL REQUEST.json ANSWER.npz`.

The request holds `ids` (lists of token ids to score, teacher-forced), `texts` (to tokenize, control tokens parsed) and
`conversations` (to render with the model's own template and tokenize).
"""

from __future__ import annotations

import json
import sys

import llama_cpp
import numpy as np
from llama_cpp.llama_chat_format import Jinja2ChatFormatter


def main() -> None:
    model, request_path, answer_path = sys.argv[1:]
    with open(request_path, encoding="utf-8") as file:
        request = json.load(file)
    length = max([len(ids) for ids in request["ids"]] + [64])
    llm = llama_cpp.Llama(model, n_ctx=length, logits_all=True, verbose=False, n_threads=2)
    answer: dict[str, np.ndarray] = {"version": np.array(llama_cpp.__version__)}
    for index, ids in enumerate(request["ids"]):
        llm.reset()
        llm.eval(ids)
        answer[f"logits{index}"] = np.array(llm.scores[: len(ids)], dtype=np.float32)
    for index, text in enumerate(request["texts"]):
        answer[f"text{index}"] = np.array(llm.tokenize(text.encode(), add_bos=False, special=True))
    formatter = None
    if request["conversations"]:
        template = llm.metadata["tokenizer.chat_template"]
        formatter = Jinja2ChatFormatter(template, eos_token="</s>", bos_token="<s>")
    for index, messages in enumerate(request["conversations"]):
        prompt = formatter(messages=messages).prompt
        answer[f"chat{index}"] = np.array(llm.tokenize(prompt.encode(), add_bos=False, special=True))
    np.savez(answer_path, **answer)


if __name__ == "__main__":
    main()
