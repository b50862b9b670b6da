"""Fixtures that several tests share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from warm import Warm

# Networks of tests are so small that several threads only wait for each other; OpenMP reads this when torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests that share an expensive fixture in the same process (``pytest --dist loadgroup``)."""
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
        of_its_file = [found[-1] for found in fixtures.values() if found[-1].baseid.endswith(".py")]
        group = next((name for name in ("warm", "learn2learn") if name in fixtures or name in item.name), None)
        if group is None and any(each.scope != "function" for each in of_its_file):
            group = item.nodeid.split("::")[0]
        if group:
            item.add_marker(pytest.mark.xdist_group(group))


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
        patch.delenv("FSL_PLUGINS", raising=False)
        yield


@pytest.fixture(scope="session")
def learn2learn() -> ModuleType:
    """The package, which takes seconds to import; without it the test is skipped."""
    return pytest.importorskip("learn2learn")


@pytest.fixture(scope="session")
def warm(quiet_environment: None) -> Iterator[Warm]:
    """Starts `fsl` in separate processes without the seconds of importing it."""
    with tempfile.TemporaryDirectory(prefix="fsl-") as folder:  # pytest's own may be too long for the name of a socket
        process = Warm(Path(folder))
        yield process
        process.close()
