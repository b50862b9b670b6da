"""Which classes a configuration may name as ``_target_``: each section only its own kind, of fsl or of a plug-in.

Hydra's ``_target_`` runs whatever it names, and configurations travel with run folders.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsl_cli.errors import FslError
from fsl_cli.settings.plugins import VARIABLE, Plugin, plugin_of, plugins


@dataclass(frozen=True)
class Kind:
    """What the class of a section must be.

    Attributes:
        package: where the classes are that are no plug-in's, ending with a dot.
        what: the kind in words.
        base: dotted name of a base class that it must have; None: any.
        members: attributes that it must have.
        interface: dotted name of the type that stands for the kind in annotations; None: that of ``base``.
    """

    package: str
    what: str
    base: str | None = None
    members: tuple[str, ...] = ()
    interface: str | None = None

    def includes(self, cls: type) -> bool:
        """Whether ``cls`` is of this kind. The base class is found by its name, because this module imports no torch."""
        bases = {f"{each.__module__}.{each.__qualname__}" for each in cls.__mro__}
        return self.base in (None, *bases) and all(hasattr(cls, name) for name in self.members)


_OF_DATASETS = ("problem_type", "problem", "classes", "task_problems", "sampler")
KINDS = {
    "algo": Kind("fsl_cli.algos.", "a fsl_cli.algos.common.algorithm.Algorithm", "fsl_cli.algos.common.algorithm.Algorithm"),
    "backbone": Kind("fsl_cli.backbones.", "a torch.nn.Module", "torch.nn.modules.module.Module"),
    "dataset": Kind(
        "fsl_cli.datasets.",
        "a Dataset of fsl_cli.datasets.dataset, such as ImageClasses",
        members=_OF_DATASETS,
        interface="fsl_cli.datasets.dataset.Dataset",
    ),
    "train.optimizer": Kind("torch.optim.", "a torch.optim.Optimizer", "torch.optim.optimizer.Optimizer"),
}


def kind_of(annotation: Any) -> str | None:
    """The section whose classes an annotation stands for, such as ``dataset`` for `Dataset`; None: of no section."""
    name = f"{getattr(annotation, '__module__', '')}.{getattr(annotation, '__qualname__', '')}"
    return next((section for section, kind in KINDS.items() if name == (kind.interface or kind.base)), None)


def target_of(node: Mapping[str, Any], section: str, place: str | None = None) -> type:
    """The class that a section of a configuration names.

    Args:
        node: the section.
        section: its kind, a key of `KINDS`.
        place: its dotted name; None: that of its kind.

    Raises:
        FslError: there is no ``_target_``, it is not in an allowed package, or it is not a class of the section's kind.
    """
    kind, target, where = KINDS[section], node.get("_target_"), f"{place or section}._target_"
    if not isinstance(target, str) or target.count(".") < 1:
        raise _not_allowed(target, kind, where)
    plugin = None
    if not (target.startswith(kind.package) and target.count(".") >= 2):
        plugin = plugin_of(target)
        if plugin is None:
            raise _not_allowed(target, kind, where)
    allowed = tuple(f"{package}." for package in plugin.packages) if plugin else kind.package
    module, _, name = target.rpartition(".")
    if plugin and not any(module in each.modules() for each in plugins()):  # importing a module runs it
        hint = f"a class of it must be the _target_ of a file in {plugin.conf}"
        raise FslError(
            f"{target!r} may not be built: no configuration of plug-in {plugin.name} names its module", where=where, hint=hint
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise FslError(f"there is no {target}", where=where, hint=str(error)) from error
    if not inspect.isclass(found) or inspect.isabstract(found) or not f"{found.__module__}.".startswith(allowed):
        raise FslError(f"{target} may not be built", where=where, hint="name a class of that package")
    if not kind.includes(found):
        raise FslError(f"{target} may not be built here", where=where, hint=f"it must be {kind.what}")
    if plugin:
        _check_origin(found, plugin, where)
    return found


def _not_allowed(target: object, kind: Kind, where: str) -> FslError:
    """The `FslError` for a target that is neither in the section's package nor in a plug-in's."""
    if isinstance(target, str) and "." in target and not target.startswith(("fsl_cli.", "torch.")):
        package = target.split(".")[0]
        what = f"{target!r} may not be built: package {package} is not a plug-in here"
        return FslError(what, where=where, hint=f"install it, or name it or its folder: {VARIABLE}={package}, if you trust it")
    names = [kind.package, *(f"{package}." for plugin in plugins() for package in plugin.packages)]
    return FslError(f"{target!r} may not be built here", where=where, hint=f"allowed: {'*, '.join(names)}*")


def _check_origin(found: type, plugin: Plugin, where: str) -> None:
    """Raise `FslError` if another package of the same name was imported in the place of a folder's."""
    file = getattr(importlib.import_module(found.__module__), "__file__", None)
    if plugin.root and not (file and Path(file).resolve().is_relative_to(plugin.root.resolve())):
        what = f"{found.__module__} was imported from {file}, not from {plugin.root}"
        raise FslError(what, where=where, hint="two packages have the same name: rename yours")
