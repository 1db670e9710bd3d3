"""API models, through the official clients against a server on loopback that speaks both wire formats."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from chuan.errors import ChuanError
from chuan.evaluation.backends.api import ApiBackend, Prices

HEAD = {"id": "1", "model": "m", "created": 1, "stop_reason": "end_turn", "stop_sequence": None}


class Server(ThreadingHTTPServer):
    """Answers "X: " and the last message, after the troubles that are queued: a status, "slow" or "malformed"."""

    def __init__(self):
        self.asked, self.troubles, self.lock = [], [], threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
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
        text = "X: " + body["messages"][-1]["content"]
        if self.path.endswith("/chat/completions"):
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
            return self.send(200, {**HEAD, "object": "chat.completion", "choices": [choice], "usage": usage})
        content = [{"type": "text", "text": text}]
        usage = {"input_tokens": 7, "output_tokens": 2}
        return self.send(200, {**HEAD, "type": "message", "role": "assistant", "content": content, "usage": usage})

    def send(self, status, body):
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

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret-key")
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def build(server, tmp_path, provider="openai", **options):
    url = f"http://127.0.0.1:{server.server_port}" + ("/v1" if provider == "openai" else "")
    return ApiBackend(f"{provider}:m", tmp_path / "cache.jsonl", url, **options)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_replies_come_in_order_with_their_cost(server, tmp_path, provider):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "甲"}]
    replies = list(build(server, tmp_path, provider).generate([*map(str, range(20)), messages]))
    assert [reply.text for reply in replies] == [f"X: {i}" for i in range(20)] + ["X: 甲"]
    assert Prices(2.0, 10.0).cost(replies) == pytest.approx(21 * (7 * 2 + 2 * 10) / 1e6)
    if provider == "anthropic":
        assert [body["system"] for _, body, _ in server.asked if "system" in body] == ["s"]
    assert all(body["temperature"] == 0 for _, body, _ in server.asked)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("trouble", [429, 500, 503, "slow"])
def test_troubles_are_retried(server, tmp_path, provider, trouble):
    server.troubles = [trouble]
    (reply,) = build(server, tmp_path, provider, timeout=0.5).generate(["q"])
    assert reply.text == "X: q"
    assert len(server.asked) == 2
    if trouble == 429:
        assert server.asked[1][2] - server.asked[0][2] >= 1.0  # what Retry-After asked for


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_what_cannot_be_retried_is_one_line(server, tmp_path, provider):
    server.troubles = [401, "malformed", 500]
    backend = build(server, tmp_path, provider, retries=0)
    for match in ("did not answer: .*401", "answered with no reply", "did not answer"):
        with pytest.raises(ChuanError, match=match):
            list(backend.generate(["q"]))
    assert next(backend.generate(["q"])).text == "X: q"


def test_no_question_is_asked_twice(server, tmp_path):
    questions = [str(i) for i in range(10)]
    server.troubles = [None] * 6 + [400]
    with pytest.raises(ChuanError, match="did not answer"):
        list(build(server, tmp_path, concurrency=1).generate(questions))
    cache = tmp_path / "cache.jsonl"
    cache.write_text(cache.read_text() + '{"request_sha256": "cut sho')
    list(build(server, tmp_path).generate(questions))
    again = list(build(server, tmp_path).generate(questions))
    answered = [body["messages"][0]["content"] for _, body, _ in server.asked]
    assert sorted(answered) == sorted([*questions, "6"])  # the seventh was refused the first time
    assert all(reply.is_cached for reply in again)
    assert "secret-key" not in cache.read_text()


def test_names_and_keys(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ChuanError, match="OPENAI_API_KEY is not set"):
        ApiBackend("openai:m", tmp_path / "c")
    with pytest.raises(ChuanError, match="openai:MODEL or anthropic:MODEL"):
        ApiBackend("gemini:m", tmp_path / "c")
