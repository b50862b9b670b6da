"""Packages of others that bring methods, backbones, data sets or experiments. Imports nothing heavy, and none of them.

A plug-in is a package with a ``conf`` folder like that of fsl, whose members name classes of the package. It is found

- when it is installed and declares an entry point of the group ``fsl.plugins`` whose value is the package, or
- when the environment variable ``FSL_PLUGINS`` names it: importable packages or folders, separated like those of ``PATH``.
  A folder is a package itself (it has an ``__init__.py``), or holds packages and modules, and ``conf`` of its own or of theirs.

Only these two decide whose classes may be built; a saved configuration never does.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fsl_cli.errors import FslError

GROUP = "fsl.plugins"
VARIABLE = "FSL_PLUGINS"


@dataclass(frozen=True)
class Plugin:
    """A package that brings members of its own.

    Attributes:
        name: how it is called: the package, or the name of the folder that holds several.
        packages: dotted names of the packages and modules whose classes may be built.
        conf: its config groups.
        root: the folder that Python must look into to import it; None: it is importable anyway.
        distribution: the installed distribution that declares it, None for one that ``FSL_PLUGINS`` names.
    """

    name: str
    packages: tuple[str, ...]
    conf: Path
    root: Path | None = None
    distribution: str | None = None

    def modules(self) -> set[str]:
        """The modules of the classes that its ``conf`` names; nothing else of it has to be imported for a configuration."""
        texts = (path.read_text(encoding="utf-8") for path in self.conf.rglob("*.yaml"))
        return {
            target.rpartition(".")[0] for text in texts for target in re.findall(r"""_target_["']?: *["']?([\w.]+)""", text)
        }

    def files(self) -> list[Path]:
        """Its Python and YAML files."""
        places = [self.conf]
        if self.root:
            places += [self.root / package for package in self.packages]
            places += [self.root / f"{package}.py" for package in self.packages]
        else:
            places += [self.conf.parent]
        every = [path for place in places for path in ([place] if place.is_file() else place.rglob("*"))]
        return sorted({path for path in every if path.suffix in (".py", ".yaml")})


def plugins() -> list[Plugin]:
    """All plug-ins, installed ones first; one that is installed and named by ``FSL_PLUGINS`` is listed once.

    Raises:
        FslError: a plug-in is not there, or has no ``conf``.
    """
    found: dict[Path, Plugin] = {}
    for each in [*_installed(), *_named(os.environ.get(VARIABLE, ""))]:
        found.setdefault(each.conf.resolve(), each)
    return list(found.values())


def plugin_of(target: str) -> Plugin | None:
    """The plug-in that a dotted name of a class belongs to, importable from now on; None when it is in none."""
    for plugin in plugins():
        if any(target.startswith(f"{package}.") for package in plugin.packages):
            if plugin.root and str(plugin.root) not in sys.path:
                sys.path.append(str(plugin.root))
            return plugin
    return None


@functools.cache
def _installed() -> tuple[Plugin, ...]:
    """The plug-ins that installed distributions declare."""
    found = []
    for entry in importlib.metadata.entry_points(group=GROUP):
        distribution = entry.dist.name if entry.dist else entry.name
        where = f"entry point {entry.name} of {distribution} ({GROUP})"
        found.append(Plugin(entry.value, (entry.value,), _conf_of_package(entry.value, where), distribution=distribution))
    return tuple(found)


def _named(value: str) -> Iterator[Plugin]:
    """The plug-ins that a value of ``FSL_PLUGINS`` names."""
    for word in filter(None, value.split(os.pathsep)):
        folder = Path(word).expanduser().absolute()
        if folder.is_dir():
            yield from _in_folder(folder)
        else:
            yield Plugin(word, (word,), _conf_of_package(word, VARIABLE))


def _in_folder(folder: Path) -> Iterator[Plugin]:
    """The plug-ins of a folder: itself, or every ``conf`` in it or in a package of it."""
    root = folder.parent if (folder / "__init__.py").is_file() else folder
    places = [folder] if root != folder else [folder, *sorted(path for path in folder.iterdir() if _is_package(path))]
    names = [folder.name] if root != folder else [path.stem for path in sorted(folder.iterdir()) if _is_module(path)]
    holding = [place for place in places if (place / "conf").is_dir()]
    if not holding:
        raise FslError("holds no conf folder of a plug-in", where=f"{VARIABLE}={folder}", hint="fsl new algo NAME makes one")
    for place in holding:
        yield Plugin(place.name, tuple(names), place / "conf", root)


def _is_package(path: Path) -> bool:
    return path.is_dir() and path.name.isidentifier() and ((path / "__init__.py").is_file() or (path / "conf").is_dir())


def _is_module(path: Path) -> bool:
    return _is_package(path) or (path.suffix == ".py" and path.stem.isidentifier())


def _conf_of_package(name: str, where: str) -> Path:
    """The ``conf`` folder of an importable package, which is not imported for it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    folders = [Path(each) / "conf" for each in (spec and spec.submodule_search_locations) or ()]
    conf = next((folder for folder in folders if folder.is_dir()), None)
    if conf is None:
        what = f"package {name} has no conf folder" if folders else f"there is no folder or package {name}"
        raise FslError(what, where=where, hint="name a folder, or a package that is installed here")
    return conf
