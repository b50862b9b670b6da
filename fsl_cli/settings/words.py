"""The words of a command line as people type them, made into Hydra's grammar: folders and texts mean what was typed.

In Hydra's grammar ``=``, ``,``, ``'``, blanks and letters other than ASCII need quotes inside the word, which the shell
takes away unless they are quoted again; and ``2024`` is a number wherever it stands.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from pydantic import BaseModel

from fsl_cli.errors import FslError
from fsl_cli.settings import plain_yaml
from fsl_cli.settings.build import arguments_of
from fsl_cli.settings.conf_files import members
from fsl_cli.settings.plain_yaml import escaped
from fsl_cli.settings.resolve import RUNTIME
from fsl_cli.settings.schema import Settings
from fsl_cli.settings.targets import target_of

FOLDERS = frozenset({"run", "resume"})  # besides the folders of the schema
NAMED_BY_SETTINGS = frozenset({"hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"})  # ``${algo.name}`` is filled in

_QUOTED = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_ALL_QUOTED = re.compile(rf"{_QUOTED}(?:,{_QUOTED})*", re.DOTALL)
_WORDS_OF_YAML = ("null", "true", "false")


def as_typed(words: Sequence[str]) -> list[str]:
    """The overrides with their folders and texts quoted as Hydra's grammar needs it; what is quoted already stays.

    Folders are taken literally, with ``~`` expanded; in the names of new folders ``${...}`` is filled in where no folder
    of that name exists. Of texts, and of the files and folders of a data set, numbers are quoted, and what Hydra cannot
    parse. ``null``, ``true`` and ``false`` stay.
    """
    return [_as_typed(word, words) for word in words]


def folder_in(value: str) -> str:
    """The folder that the value of ``run=FOLDER`` names: literally, or what Hydra's quotes enclose; ``~`` is expanded."""
    if re.fullmatch(_QUOTED, value, re.DOTALL):
        value = str(OverridesParser.create().parse_override(f"run={value}").value())
    return os.path.expanduser(value)


def quoted(text: str) -> str:
    """The value of Hydra's grammar that is exactly this text; an interpolation in it stays one."""
    return QuotedString(text, Quote.single).with_quotes()


def unparsed_hint(word: str) -> str:
    """What to type for a word that Hydra cannot parse."""
    key, equals, value = word.partition("=")
    if not equals:
        return "write key=value"
    if value[:1] in ("[", "{"):
        return f'close the bracket, and quote a word with blanks: "{key}=[0, 1]"'
    override = f"{key}={quoted(value)}"
    special = re.search(r'[$`!"\\]', override)  # between double quotes too
    return "quote the value: " + (shlex.quote(override) if special else f'"{override}"')


def _as_typed(word: str, words: Sequence[str]) -> str:
    key, _, value = word.partition("=")
    name = key.lstrip("+")
    if not value or _ALL_QUOTED.fullmatch(value):
        return word
    if name in FOLDERS | _keys_of(Path) | NAMED_BY_SETTINGS:
        if value.lower() in _WORDS_OF_YAML:
            return word
        path = os.path.expanduser(value)
        there = _existing(path) if name in NAMED_BY_SETTINGS else len(path)
        return f"{key}={quoted(escaped(path[:there]) + path[there:])}"
    if name in _keys_of(str) or (_is_text_option(name, words) and not _is_taken_as_text(word)):
        if not _parses(word):
            return f"{key}={quoted(value)}"
        if not re.search(r"""['"(){}]""", value):
            return f"{key}={re.sub(r'[^][,]+', lambda part: _as_text(part[0]), value)}"
    return word


def _existing(path: str) -> int:
    """Where the part of a path ends that is the name of a folder that exists."""
    ends = [place for place, character in enumerate(path) if character == os.sep and place]
    return next((end for end in (len(path), *reversed(ends)) if os.path.lexists(path[:end])), 0)


def _as_text(element: str) -> str:
    """An element of a list or a sweep, quoted if it would be a number or a truth value otherwise."""
    value = OverridesParser.create().parse_override(f"key={element}").value() if _parses(f"key={element}") else None
    return quoted(element.strip()) if isinstance(value, (int, float)) else element


def _parses(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def _is_taken_as_text(word: str) -> bool:
    """Whether the value of an override is to Hydra the text that was typed."""
    return _parses(word) and OverridesParser.create().parse_override(word).value() == word.partition("=")[2]


def _is_text_option(name: str, words: Sequence[str]) -> bool:
    """Whether an option of a method, backbone or data set takes texts, files or folders, and no numbers.

    It is looked up in the class that the words choose, else in all of its group that have such an option.
    """
    group, _, option = name.partition(".")
    if group not in RUNTIME or not option:
        return False
    chosen = {part for word in words if word.startswith(f"{group}=") for part in word.partition("=")[2].split(",")}
    found: set[Any] = set()
    for member, file in members(group).items():
        node = plain_yaml.read(file.path) if not chosen or member in chosen else {}
        node = node.get(group, node)
        if isinstance(node.get(option), (int, float, list)):
            return False
        try:
            arguments = arguments_of(target_of(node, group)) if "_target_" in node else {}
        except FslError:  # reported when the configuration is checked
            continue
        if option in arguments:
            found |= _members(arguments[option][0])
    return bool(found & {Path, str}) and not found & {int, float, bool, Any}


@functools.cache
def _keys_of(kind: type) -> frozenset[str]:
    """Dotted names of the settings that take this type, or a list of it."""
    return frozenset(name for name, annotation in _annotations(Settings, "") if kind in _members(annotation))


def _annotations(section: type[BaseModel], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += _annotations(field.annotation, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", field.annotation))
    return found


def _members(annotation: Any) -> set[Any]:
    """The types that an annotation is made of: those of a union, of a list, and of `Annotated`."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, list):
        return set().union(*(_members(each) for each in typing.get_args(annotation)))
    return _members(typing.get_args(annotation)[0]) if origin is typing.Annotated else {annotation}
