"""Config nodes inside a section, such as the data sets of a mixture: members of a group named instead of written out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fsl_cli.errors import FslError, close_match, raise_all
from fsl_cli.settings.build import kinds_of_nodes
from fsl_cli.settings.conf_files import choices
from fsl_cli.settings.targets import target_of


def with_nodes(node: Any, section: str) -> Any:
    """A section in which every option that holds config nodes has them written out, as a saved configuration needs them.

    ``[omniglot, glyphs]`` stands for these members of the group; ``{photos: {dataset: folder, root: photos}}`` for a member
    with changed options, whose name is that of the entry unless it is given. Entries with a ``_target_`` stay as they are.

    Args:
        node: the section.
        section: its name.

    Raises:
        Problems: members that do not exist, and options without a default that are missing.
    """
    try:
        options = kinds_of_nodes(target_of(node, section)) if isinstance(node, Mapping) else {}
    except FslError:  # reported when the configuration is checked
        return node
    for name, kind in options.items():
        if node.get(name) not in (None, "???"):
            node = {**node, name: _written_out(node[name], f"{section}.{name}", kind)}
    return node


def _written_out(given: Any, where: str, kind: str) -> Any:
    if isinstance(given, Sequence) and not isinstance(given, str):
        if not all(isinstance(each, str) for each in given) or len(set(given)) < len(given):
            hint = f"name each once: {where}=[a,b], or give them names: {where}={{a:{{{kind}:NAME}},b:{{{kind}:NAME}}}}"
            raise FslError(f"{list(given)} is not valid", where=where, hint=hint)
        given = {each: {} for each in given}
    if not isinstance(given, Mapping):
        raise FslError(f"{given!r} is not valid", where=where, hint=f"name several: {where}=[a,b]")
    nodes = {str(label): _node(str(label), each, where, kind) for label, each in given.items()}
    missing = [f"{where}.{label}.{name}" for label, node in nodes.items() for name, value in node.items() if value == "???"]
    hint = "it has no default: write {NAME: {OPTION: VALUE}}"
    raise_all([FslError("is missing", where=key, hint=hint) for key in missing])
    return nodes


def _node(label: str, given: Any, where: str, kind: str) -> dict[str, Any]:
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise FslError(f"{given!r} is not valid", where=f"{where}.{label}", hint="expected options: {OPTION: VALUE}")
    if "_target_" in given:
        return dict(given)
    member = str(given.get(kind, label))
    if member not in choices(kind):
        raise FslError(f"there is no {kind} {member}", where=f"{where}.{label}", hint=close_match(member, choices(kind)))
    from fsl_cli.settings.compose import member_node  # imports Hydra, which checking a configuration does not need otherwise

    changes = {key: value for key, value in given.items() if key != kind}
    return {str(key): value for key, value in {**member_node(kind, member), **changes}.items()}
