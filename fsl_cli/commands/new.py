"""`fsl new`: a method, backbone or data set of your own, outside of fsl: code, configuration and test that work."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fsl_cli.errors import FslError, close_match
from fsl_cli.results.files import check_writable, write_text
from fsl_cli.settings.conf_files import choices
from fsl_cli.settings.plugins import VARIABLE, plugins
from fsl_cli.show import console

PLACES = {"algo": "algos", "backbone": "backbones", "dataset": "datasets"}  # the package of each kind
TEMPLATES = Path(__file__).parent / "templates"
IN = "in"
DEFAULT = "my_fsl"


def main(arguments: Sequence[str]) -> int:
    """Run the verb. Returns the exit code."""
    kind, name, folder = _parse(arguments)
    package = folder.name
    _check_name(name, kind, where=f"fsl new {kind}")
    _check_name(package, None, where=f"{IN}={folder}")
    _check_package(package, folder)
    words = {
        "NAME": name,
        "CLASS": "".join(part.capitalize() for part in name.split("_")),
        "PACKAGE": package,
        "DISTRIBUTION": package.replace("_", "-"),
    }
    inside = folder / package
    files = {
        inside / PLACES[kind] / f"{name}.py": f"{kind}.py",
        inside / "conf" / kind / f"{name}.yaml": f"{kind}.yaml",
        folder / "tests" / f"test_{name}.py": f"{kind}_test.py",
    }
    _write(files, words)
    shared = {
        folder / "pyproject.toml": "pyproject.toml",
        inside / "__init__.py": None,
        inside / PLACES[kind] / "__init__.py": None,
    }
    _write({path: template for path, template in shared.items() if not path.exists()}, words)
    _say_how_to_use(kind, name, folder)
    return 0


def _parse(arguments: Sequence[str]) -> tuple[str, str, Path]:
    """The kind, the name and the folder of the plug-in."""
    usage = f"fsl new {'|'.join(PLACES)} NAME [{IN}=FOLDER]"
    if any(word.startswith("-") for word in arguments):
        raise FslError("is not a flag of fsl new", where=next(word for word in arguments if word.startswith("-")), hint=usage)
    given = [word for word in arguments if "=" not in word]
    options = dict(word.split("=", 1) for word in arguments if "=" in word)
    unknown = next((key for key in options if key != IN), None)
    if unknown:
        raise FslError("there is no such option", where=unknown, hint=usage)
    if len(given) != 2:
        raise FslError(f"takes a kind and a name, not {len(given)} words", where="fsl new", hint=usage)
    kind, name = given
    if kind not in PLACES:
        raise FslError(f"cannot make {kind}", where="fsl new", hint=close_match(kind, PLACES))
    return kind, name, Path(options.get(IN) or DEFAULT).expanduser().absolute()


def _check_name(name: str, kind: str | None, where: str) -> None:
    """Raise `FslError` for a name that cannot be one, or of a member that exists."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise FslError(f"{name} is no name for Python", where=where, hint="use a-z, 0-9 and _, as in my_method")
    if kind and name in choices(kind):
        raise FslError(f"there is already {kind}={name}", where=where, hint="choose another name")


def _check_package(package: str, folder: Path) -> None:
    """Raise `FslError` for a name that another package has, which would be imported in its place."""
    spec = importlib.util.find_spec(package)
    if spec and spec.origin and not Path(spec.origin).is_relative_to(folder):
        what = f"there is already a package {package}, {spec.origin}"
        raise FslError(what, where=f"{IN}={folder}", hint="choose another name for the folder")


def _write(files: Mapping[Path, str | None], words: Mapping[str, str]) -> None:
    """Write templates with their words filled in, an empty file for None; all of them or none."""
    existing = next((path for path in files if path.exists()), None)
    if existing:
        raise FslError("exists", where=str(existing), hint="choose another name, or remove it")
    for path in files:
        check_writable(path.parent)
    for path, template in files.items():
        text = (TEMPLATES / f"{template}.txt").read_text(encoding="utf-8") if template else ""
        write_text(path, re.sub(rf"\b({'|'.join(words)})\b", lambda match: words[match.group()], text))
        console.say(f"wrote   {os.path.relpath(path)}")


def _say_how_to_use(kind: str, name: str, folder: Path) -> None:
    shown = os.path.relpath(folder)
    if not any(folder in (plugin.root, plugin.conf.parent.parent) for plugin in plugins()):
        console.say(f"use     export {VARIABLE}={folder}    # or: pip install -e {shown}")
    console.say(f"train   fsl train {kind}={name}")
    console.say(f"test    python -m pytest {shown}")
