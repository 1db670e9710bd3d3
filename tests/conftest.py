import os
from pathlib import Path

import pytest

from chuan.checkpoints.catalogue import resolve_model

# The kernels of a GPU run by Triton's interpreter, on any machine; Triton reads this when it is imported, by whomever.
os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def ledgers_elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tests write and check is not noted among the user's own models."""
    base = tmp_path_factory.getbasetemp() / "ledgers"
    monkeypatch.setattr("chuan.checkpoints.ledger.user_cache_path", lambda name: base / name)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real small model: from the user's cache, fetched once a machine."""
    return resolve_model("smollm2-135m")
