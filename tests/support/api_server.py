"""A server on loopback that speaks the wire formats of OpenAI's and Anthropic's APIs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HEAD = {"id": "1", "model": "m", "created": 1, "stop_reason": "end_turn", "stop_sequence": None}


class Server(ThreadingHTTPServer):
    """Answers as `reply` says, after the troubles that are queued: a status, "slow", "malformed" or "refusal"."""

    def __init__(self, reply: Callable[[str], str] = "X: {}".format) -> None:
        self.reply = reply
        self.asked: list[tuple[str, dict[str, Any], float]] = []
        self.troubles: list[Any] = []
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, body, time.monotonic()))
            trouble = self.server.troubles.pop(0) if self.server.troubles else None
        if trouble == "slow":
            time.sleep(1.0)
        if isinstance(trouble, int):
            return self.send(trouble, {"error": {"message": "no", "type": "trouble"}})
        if trouble == "malformed":
            return self.send(200, {"hello": "there"})
        text = self.server.reply(body["messages"][-1]["content"])
        if self.path.endswith("/chat/completions"):
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if trouble == "refusal":
                message = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
            return self.send(200, {**HEAD, "object": "chat.completion", "choices": [choice], "usage": usage})
        content = [] if trouble == "refusal" else [{"type": "text", "text": text}]
        spent = {"input_tokens": 7, "output_tokens": 2}
        return self.send(200, {**HEAD, "type": "message", "role": "assistant", "content": content, "usage": spent})

    def send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if status == 429:
                self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            pass  # the client has given up

    def log_message(self, *_: Any) -> None:
        pass
