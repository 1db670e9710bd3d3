"""API models, through the official clients against a server on loopback that speaks both wire formats."""

import threading
from importlib.metadata import version

import pytest

from chuan.errors import ChuanError
from chuan.evaluation.backends.api import ApiBackend
from chuan.evaluation.backends.backend import GenerationOptions, LetterBackend, PaidBackend
from tests.support.api_server import Server

GREEDY = GenerationOptions(64)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret-key")
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def build(server, tmp_path, provider="openai", **options):
    url = server.url + ("/v1" if provider == "openai" else "")
    return ApiBackend(f"{provider}:m", tmp_path / "cache.jsonl", url, **options)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_replies_have_the_numbers_of_their_prompts_and_what_they_cost(server, tmp_path, provider):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "甲"}]
    backend = build(server, tmp_path, provider)
    replies = dict(backend.ask([*map(str, range(20)), messages], GREEDY))
    assert [replies[n].text for n in range(21)] == [f"X: {i}" for i in range(20)] + ["X: 甲"]
    assert all((reply.input_tokens, reply.output_tokens) == (7, 2) for reply in replies.values())
    assert dict(backend.generate(["3"], GREEDY)) == {0: "X: 3"}
    if provider == "anthropic":
        assert [body["system"] for _, body, _ in server.asked if "system" in body] == ["s"]
    assert all((body["temperature"], body["max_tokens"]) == (0, 64) for _, body, _ in server.asked)
    assert len(server.asked) == 21


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_options_are_part_of_the_request(server, tmp_path, provider):
    backend = build(server, tmp_path, provider)
    for options in (GREEDY, GenerationOptions(9, temperature=0.5, stop=("\n",))):
        list(backend.ask(["q"], options))
    _, body, _ = server.asked[1]  # another request, so not out of the cache
    assert (body["temperature"], body["max_tokens"]) == (0.5, 9)
    assert body["stop" if provider == "openai" else "stop_sequences"] == ["\n"]


def test_openai_itself_has_another_name_for_the_length(server, tmp_path):
    request = ApiBackend("openai:m", tmp_path / "c")._build_request([{"role": "user", "content": "q"}], GREEDY)
    assert request["max_completion_tokens"] == 64
    assert "max_tokens" not in request


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("trouble", [429, 500, 503, "slow"])
def test_troubles_are_retried(server, tmp_path, provider, trouble):
    server.troubles = [trouble]
    ((_, reply),) = build(server, tmp_path, provider, timeout=0.5).ask(["q"], GREEDY)
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
            list(backend.ask(["q"], GREEDY))
    assert next(backend.ask(["q"], GREEDY))[1].text == "X: q"


@pytest.mark.parametrize(("provider", "text"), [("openai", "I cannot help with that."), ("anthropic", "")])
def test_a_refusal_is_a_reply(server, tmp_path, provider, text):
    server.troubles = ["refusal"]
    assert dict(build(server, tmp_path, provider).generate(["q"], GREEDY)) == {0: text}


def test_half_a_character_breaks_nothing(server, tmp_path):
    server.reply = lambda _: "B \ud83d"
    for _ in range(2):
        assert dict(build(server, tmp_path).generate(["q"], GREEDY)) == {0: "B ?"}


def test_no_question_is_asked_twice(server, tmp_path):
    questions = [str(i) for i in range(10)]
    server.troubles = [None] * 6 + [400]
    with pytest.raises(ChuanError, match="did not answer"):
        list(build(server, tmp_path, concurrency=1).ask(questions, GREEDY))
    cache = tmp_path / "cache.jsonl"
    cache.write_text(cache.read_text() + '{"request_sha256": "cut sho')
    list(build(server, tmp_path).ask(questions, GREEDY))
    again = list(build(server, tmp_path).ask(questions, GREEDY))
    answered = [body["messages"][0]["content"] for _, body, _ in server.asked]
    assert set(answered) == set(questions)
    assert [question for question in questions if answered.count(question) > 1] == ["6"]  # refused the first time
    assert all(reply.is_cached for _, reply in again)
    assert "secret-key" not in cache.read_text()


def test_facts(server, tmp_path):
    backend = build(server, tmp_path)
    assert isinstance(backend, PaidBackend)
    assert not isinstance(backend, LetterBackend)
    assert (backend.facts.model, backend.facts.bits, backend.facts.dtype) == ("openai:m", None, None)
    assert backend.facts.versions == {"openai": version("openai")}
    assert backend.facts.backend == f"openai at {server.url}/v1"
    url = server.url.replace("//", "//user:secret@")
    assert "secret" not in ApiBackend("openai:m", tmp_path / "c", url).facts.backend


def test_names_and_keys(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ChuanError, match="OPENAI_API_KEY is not set"):
        ApiBackend("openai:m", tmp_path / "c")
    with pytest.raises(ChuanError, match="openai:MODEL or anthropic:MODEL"):
        ApiBackend("gemini:m", tmp_path / "c")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    (tmp_path / "file").touch()
    with pytest.raises(ChuanError, match="cannot be written: .*choose another --output"):
        ApiBackend("openai:m", tmp_path / "file" / "c")
    with pytest.raises(ChuanError, match="--concurrency 0 asks nothing"):
        ApiBackend("openai:m", tmp_path / "c", concurrency=0)
