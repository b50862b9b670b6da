"""The options of a command of `fsl data`, which are no overrides."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fsl_cli.errors import FslError


def split_options(words: Sequence[str], names: Collection[str], command: str) -> tuple[dict[str, str], list[str]]:
    """The command's own options ``NAME=VALUE``, taken literally, and the other words.

    Raises:
        FslError: an option is empty or given twice.
    """
    options: dict[str, str] = {}
    others = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in names:
            others.append(word)
        elif not value or name in options:
            raise FslError("is given twice" if name in options else "is empty", where=word, hint=f"{command} {name}=...")
        else:
            options[name] = value
    return options, others
