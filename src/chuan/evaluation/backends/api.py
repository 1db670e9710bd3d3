"""Models behind an API: OpenAI-compatible ones and Anthropic's, asked through their official clients.

In: prompts. Out: replies in the order of the prompts, with the tokens that were paid for. The clients retry 429, 5xx
and time-outs with growing pauses and wait as long as Retry-After says. Every reply is kept on disk by the hash of its
request as soon as it is there, so that a run that was killed asks no question twice. Keys come from the
environment alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai

from chuan.errors import ChuanError, first_line

Prompt = str | list[dict[str, str]]


@dataclass(frozen=True)
class Reply:
    """A text, and what it cost in tokens; `is_cached` where it was not asked for again."""

    text: str
    input_tokens: int
    output_tokens: int
    is_cached: bool = False


@dataclass(frozen=True)
class Prices:
    """What a million tokens cost, in whatever currency the user thinks in."""

    input: float
    output: float

    def cost(self, replies: Sequence[Reply]) -> float:
        """Of all that were asked for, cached ones included: they were paid once."""
        tokens_in, tokens_out = sum(r.input_tokens for r in replies), sum(r.output_tokens for r in replies)
        return (self.input * tokens_in + self.output * tokens_out) / 1e6


class ReplyCache:
    """Replies by the hash of their request, one line of JSON each; a line that a kill cut short is passed over."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._replies: dict[str, Reply] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    row = json.loads(line)
                    key = row.pop("request_sha256")
                    self._replies[key] = Reply(**row)
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")  # so that the next line does not continue one that was cut

    def get(self, key: str) -> Reply | None:
        return self._replies.get(key)

    def put(self, key: str, reply: Reply) -> None:
        row = {"request_sha256": key, **asdict(reply), "is_cached": True}
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._replies[key] = Reply(**{**asdict(reply), "is_cached": True})


class ApiBackend:
    """Answers by generation; it has no scores of letters. `name` is `openai:MODEL` or `anthropic:MODEL`."""

    def __init__(
        self,
        name: str,
        cache: Path,
        base_url: str | None = None,
        concurrency: int = 4,
        max_tokens: int = 512,
        retries: int = 8,
        timeout: float = 120.0,
    ) -> None:
        self.provider, _, self.model = name.partition(":")
        variable = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}.get(self.provider)
        if variable is None or not self.model:
            raise ChuanError(f"{name} is no model of an API; write openai:MODEL or anthropic:MODEL")
        key = os.environ.get(variable)
        if not key:
            raise ChuanError(f"{variable} is not set; put your key into it (for a local server, any text)")
        self.base_url, self.concurrency, self.max_tokens = base_url, concurrency, max_tokens
        client: Any = openai.OpenAI if self.provider == "openai" else anthropic.Anthropic
        self._client = client(api_key=key, base_url=base_url, max_retries=retries, timeout=timeout)
        self._cache = ReplyCache(cache)

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Reply]:
        """A reply for each prompt, a text or messages, in their order; `concurrency` of them are asked for at a time.

        Raises ChuanError where the API refuses, still fails after the retries, or answers with something else.
        """
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(self._answer, prompt) for prompt in prompts]
            try:
                for future in futures:
                    yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)  # what is under way is paid for: it is waited for and kept

    def _answer(self, prompt: Prompt) -> Reply:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        request = self._build_request(messages)
        described = json.dumps([self.provider, self.base_url, request], sort_keys=True, ensure_ascii=False)
        key = hashlib.sha256(described.encode("utf-8", "backslashreplace")).hexdigest()
        known = self._cache.get(key)
        if known is not None:
            return known
        try:
            reply = self._ask(request)
        except (openai.OpenAIError, anthropic.AnthropicError) as error:
            raise ChuanError(f"{self.provider}:{self.model} did not answer: {first_line(error)}; try again") from None
        except (AttributeError, IndexError, TypeError, ValueError):
            raise ChuanError(f"{self.provider}:{self.model} answered with no reply; check --base-url") from None
        self._cache.put(key, reply)
        return reply

    def _build_request(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        request: dict[str, Any] = {"model": self.model, "max_tokens": self.max_tokens}
        if self.provider == "openai":
            return {**request, "temperature": 0, "messages": messages}
        request["extra_body"] = {"temperature": 0}  # the client has no argument for it any more, the wire has
        system = "\n".join(message["content"] for message in messages if message["role"] == "system")
        turns = [message for message in messages if message["role"] != "system"]
        return {**request, "messages": turns, **({"system": system} if system else {})}

    def _ask(self, request: dict[str, Any]) -> Reply:
        if self.provider == "openai":
            done = self._client.chat.completions.create(**request)
            text, usage = done.choices[0].message.content, done.usage
            counts = (usage.prompt_tokens, usage.completion_tokens) if usage is not None else (0, 0)
        else:
            done = self._client.messages.create(**request)
            text = "".join(block.text for block in done.content if block.type == "text")
            counts = (done.usage.input_tokens, done.usage.output_tokens)
        if not isinstance(text, str):
            raise TypeError
        return Reply(text, *counts)
