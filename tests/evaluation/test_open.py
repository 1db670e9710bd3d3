"""Which backend a name opens, and options that mean nothing for it."""

from pathlib import Path

import pytest

from chuan.errors import ChuanError
from chuan.evaluation.backends.api import ApiBackend
from chuan.evaluation.backends.chuan import ChuanBackend
from chuan.evaluation.backends.open import is_api, open_backend
from tests.support.folders import write_llama_folder


def test_a_name_says_what_answers(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    write_llama_folder(tmp_path / "model")
    assert isinstance(open_backend(str(tmp_path / "model"), None, "cpu", "float32"), ChuanBackend)
    for name in ("openai:gpt-4", "anthropic:claude"):
        assert is_api(name)
        assert isinstance(open_backend(name, None, "auto", "auto", cache=tmp_path / "r.jsonl"), ApiBackend)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("openai:gpt-4", {"bits": 8}, "runs elsewhere; leave out --bits"),
        ("openai:gpt-4", {"trust_remote_code": True}, "runs elsewhere; leave out"),
        ("somebody/model", {"base_url": "http://x"}, "--base-url is for openai:NAME and anthropic:NAME"),
        ("somebody/model", {"trust_remote_code": True}, "--trust-remote-code is for hf:somebody/model"),
        ("hf:somebody/model", {"bits": 4}, "run with the weights it has; leave out --bits"),
    ],
)
def test_options_of_another_backend_are_refused(name, options, match):
    with pytest.raises(ChuanError, match=match):
        open_backend(name, **{"bits": None, "device": "cpu", "dtype": "auto", **options})
