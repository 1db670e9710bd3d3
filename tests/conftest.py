from pathlib import Path

import pytest

from chuan.checkpoints.catalogue import resolve_model


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real small model: from the user's cache, fetched once a machine."""
    return resolve_model("smollm2-135m")
