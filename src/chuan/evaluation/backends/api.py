"""Models behind an API: OpenAI-compatible ones and Anthropic's, asked through their official clients.

In: prompts. Out: replies, with the tokens that were paid for. The clients retry 429, 5xx and time-outs with growing
pauses and wait as long as Retry-After says. Every reply is kept on disk by the hash of its request as soon as it is
there, so that a run that was killed asks no question twice. Keys come from the environment alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anthropic
import openai

from chuan.errors import ChuanError, first_line
from chuan.evaluation.backends.backend import GenerationOptions, GenerationPrompt, ModelFacts, Reply


class ReplyCache:
    """Replies by the hash of their request, one line of JSON each; a line that a kill cut short is passed over."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._replies: dict[str, Reply] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
            with path.open("a", encoding="utf-8") as file:
                file.write("\n" if lines else "")  # so that the next line does not continue one that was cut
        except OSError as error:
            raise ChuanError(f"{path} cannot be written: {error.strerror}; choose another --output") from None
        for line in lines:
            try:
                row = json.loads(line)
                key = row.pop("request_sha256")
                self._replies[key] = Reply(**row)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue

    def get(self, key: str) -> Reply | None:
        return self._replies.get(key)

    def put(self, key: str, reply: Reply) -> None:
        row = {"request_sha256": key, **asdict(reply), "is_cached": True}
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._replies[key] = Reply(**{**asdict(reply), "is_cached": True})


class ApiBackend:
    """A `PaidBackend`. `name` is `openai:MODEL` or `anthropic:MODEL`."""

    def __init__(
        self,
        name: str,
        cache: Path,
        base_url: str | None = None,
        concurrency: int = 4,
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
        if concurrency < 1:
            raise ChuanError(f"--concurrency {concurrency} asks nothing; give 1 or more")
        self.base_url, self.concurrency = base_url, concurrency
        client: Any = openai.OpenAI if self.provider == "openai" else anthropic.Anthropic
        self._client = client(api_key=key, base_url=base_url, max_retries=retries, timeout=timeout)
        self._cache = ReplyCache(cache)
        # Another server is another model, whatever it calls itself; a password in its address is nobody's business.
        where = f" at {re.sub('//[^/@]*@', '//', base_url)}" if base_url else ""
        self.facts = ModelFacts(name, self.provider + where, versions={self.provider: version(self.provider)})

    def generate(self, prompts: Iterable[GenerationPrompt], options: GenerationOptions) -> Iterator[tuple[int, str]]:
        for number, reply in self.ask(prompts, options):
            yield number, reply.text

    def ask(self, prompts: Iterable[GenerationPrompt], options: GenerationOptions) -> Iterator[tuple[int, Reply]]:
        """As they come; `concurrency` of them are asked for at a time. An API has no seed to set.

        Raises ChuanError where the API refuses, still fails after the retries, or answers with something else.
        """
        with ThreadPoolExecutor(self.concurrency) as pool:
            numbers = {pool.submit(self._answer, prompt, options): number for number, prompt in enumerate(prompts)}
            try:
                for future in as_completed(numbers):
                    yield numbers[future], future.result()
            finally:
                pool.shutdown(cancel_futures=True)  # what is under way is paid for: it is waited for and kept

    def _answer(self, prompt: GenerationPrompt, options: GenerationOptions) -> Reply:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        request = self._build_request(messages, options)
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

    def _build_request(self, messages: Sequence[Mapping[str, str]], options: GenerationOptions) -> dict[str, Any]:
        longest = options.max_new_tokens
        if self.provider == "openai":
            # OpenAI's own name for it; servers that are compatible know the older one.
            limit = {"max_tokens": longest} if self.base_url else {"max_completion_tokens": longest}
            stop = {"stop": list(options.stop)} if options.stop else {}
            turns = [dict(message) for message in messages]
            return {"model": self.model, **limit, "temperature": options.temperature, **stop, "messages": turns}
        system = "\n".join(message["content"] for message in messages if message["role"] == "system")
        return {
            "model": self.model,
            "max_tokens": longest,
            "extra_body": {"temperature": options.temperature},  # the client has no argument for it, the wire has
            **({"stop_sequences": list(options.stop)} if options.stop else {}),
            **({"system": system} if system else {}),
            "messages": [dict(message) for message in messages if message["role"] != "system"],
        }

    def _ask(self, request: dict[str, Any]) -> Reply:
        if self.provider == "openai":
            done = self._client.chat.completions.create(**request)
            message, usage = done.choices[0].message, done.usage
            text = message.content or message.refusal or ""  # a refusal is a reply too: it names no letter
            counts = (usage.prompt_tokens, usage.completion_tokens) if usage is not None else (0, 0)
        else:
            done = self._client.messages.create(**request)
            text = "".join(block.text for block in done.content if block.type == "text")
            counts = (done.usage.input_tokens, done.usage.output_tokens)
        if not isinstance(text, str):
            raise TypeError
        whole = text.encode("utf-8", "replace").decode("utf-8")  # JSON can hold half of a UTF-16 pair, files cannot
        return Reply(whole, *counts)
