"""Fixtures that several tests share."""

from __future__ import annotations

import os
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
