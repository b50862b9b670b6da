"""W&B modes (online, offline, disabled), and API keys, which are found in the same places as by W&B."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from wandb_file import find_wandb, read_wandb

from fsl_cli.errors import FslError
from fsl_cli.results import wandb_environment, wandb_run
from fsl_cli.results.wandb_run import WandbRun


def start(folder: Path, mode: str, **options: Any) -> WandbRun:
    values = {"project": "p", "entity": None, "group": None, "name": "n", "tags": [], **options}
    return WandbRun(folder, {"a": 1}, mode=mode, **values)


def test_a_run_goes_on_under_its_id(tmp_path):
    started = start(tmp_path, "offline", run_id="theid123")
    started.log(5, {"a": 1.0})
    assert started.where.startswith("offline, upload with: wandb sync ")
    assert Path(started.where.split()[-1]) == find_wandb(tmp_path).parent
    started.finish(0)
    assert read_wandb(tmp_path).run_id == "theid123"


def test_wandb_that_cannot_start_is_one_line(tmp_path, monkeypatch):
    import wandb

    def refuse(**options: Any) -> None:
        raise wandb.errors.CommError("no route to host\nand more")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(FslError) as error:
        start(tmp_path, "online")
    assert str(error.value) == "wandb.mode: W&B cannot start online: no route to host (use wandb.mode=offline)"


def test_auto_goes_offline_when_the_server_cannot_be_reached(tmp_path, monkeypatch):
    import wandb

    modes, init = [], wandb.init

    def unreachable(**options: Any) -> Any:
        modes.append(options["mode"])
        if options["mode"] == "online":
            raise wandb.errors.CommError("no route to host")
        return init(**options | {"mode": "disabled"})

    monkeypatch.setattr(wandb, "init", unreachable)
    monkeypatch.setenv("WANDB_MODE", "online")
    start(tmp_path, "auto").finish(0)
    assert modes == ["online", "offline"]


@pytest.fixture
def no_key(monkeypatch, tmp_path) -> Path:
    """A home folder without any key, and W&B's settings as a fresh process would read them."""
    import wandb

    def fresh() -> SimpleNamespace:
        base_url = os.environ.get("WANDB_BASE_URL")
        return SimpleNamespace(settings=wandb.Settings(base_url=base_url) if base_url else wandb.Settings())

    monkeypatch.setattr(wandb, "setup", fresh)
    names = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL", "NETRC")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


KEY = "0123456789abcdef0123456789abcdef01234567"


def wandb_finds_a_key() -> bool:
    """The API key according to W&B itself."""
    import wandb
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib.wbauth import wbnetrc

    try:
        return wbnetrc.read_netrc_auth(host=wandb.setup().settings.base_url) is not None
    except AuthenticationError:
        return False


@pytest.mark.parametrize(
    ("files", "environment", "expected"),
    [
        ({}, {}, False),
        ({".netrc": f"machine api.wandb.ai login user password {KEY}"}, {}, True),
        ({".netrc": f"machine api.wandb.ai\n  login user\n  password {KEY}\n"}, {}, True),
        ({"_netrc": f"machine api.wandb.ai login user password {KEY}"}, {}, True),
        ({".netrc": f"machine example.org login user password {KEY}"}, {}, False),
        ({".netrc": "machine api.wandb.ai login user"}, {}, False),
        ({".netrc": "not a netrc {{{"}, {}, False),
        ({"keys": f"machine api.wandb.ai login user password {KEY}"}, {"NETRC": "~/keys"}, True),
        ({".netrc": f"machine api.wandb.ai login user password {KEY}"}, {"NETRC": "~/keys"}, False),
        ({".netrc": f"machine my.org:8080 login user password {KEY}"}, {"WANDB_BASE_URL": "http://my.org:8080"}, True),
        ({".netrc": f"machine api.wandb.ai login user password {KEY}"}, {"WANDB_BASE_URL": "http://my.org"}, False),
    ],
    ids=str,
)
def test_a_key_in_the_netrc_file_is_found_where_wandb_finds_it(no_key, monkeypatch, files, environment, expected):
    for name, text in files.items():
        (no_key / name).write_text(text)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_finds_a_key() is expected
    assert wandb_environment.has_api_key() is expected
    assert wandb_environment.resolve_mode("auto") == ("online" if expected else "offline")


def test_a_key_in_the_settings_is_found(no_key, monkeypatch):
    import wandb

    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=wandb.Settings(api_key=KEY)))
    assert wandb_environment.has_api_key()


def test_wandb_has_the_settings_that_are_asked_for():
    import wandb

    settings = wandb.setup().settings
    assert settings.base_url.startswith("https://")
    assert settings.api_key is None


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"])
def test_a_key_in_the_environment_is_found(no_key, monkeypatch, name):
    assert not wandb_environment.has_api_key()
    monkeypatch.setenv(name, KEY)
    assert wandb_environment.has_api_key()
    assert wandb_environment.resolve_mode("auto") == "online"


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_an_explicit_mode_is_used(no_key, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", "disabled" if mode == "online" else "online")
    assert wandb_environment.resolve_mode(mode) == mode


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_auto_follows_wandb_mode(no_key, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert wandb_environment.resolve_mode("auto") == mode
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    assert wandb_environment.resolve_mode("auto") == "online"


def test_wandb_may_hold_up_a_run_that_has_started_for_15_seconds_altogether():
    limits = (wandb_run.FINISH, wandb_run._ARTIFACT, wandb_run._GRACE, wandb_run._TEARDOWN)
    assert sum(limits) <= 15
