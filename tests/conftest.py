"""Fixtures that several tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def omniglot_dir() -> Path:
    """The folder that holds real ``omniglot/``; without one the test is skipped, or fails if FSL_REQUIRE_DATA=1."""
    folder = os.environ.get("FSL_DATA_DIR")
    if folder and (Path(folder) / "omniglot").is_dir():
        return Path(folder)
    reason = f"no omniglot/ in FSL_DATA_DIR={folder}" if folder else "FSL_DATA_DIR is not set"
    if os.environ.get("FSL_REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def quiet_environment(request: pytest.FixtureRequest) -> Iterator[None]:
    """W&B stays offline, and the packs of the tests are kept between sessions: they are keyed by their content."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSL_CACHE_DIR", str(request.config.rootpath / ".pytest_cache" / "fsl"))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.delenv("WANDB_API_KEY", raising=False)
        yield
