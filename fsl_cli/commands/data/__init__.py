"""`fsl data`: what data there is, packing it, checking it, looking at it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from fsl_cli.errors import FslError, close_match
from fsl_cli.settings.help_text import DATA


def main(arguments: Sequence[str]) -> int:
    """Run the verb. Returns the exit code."""
    flags = [word for word in arguments if word.startswith("-")]
    name = next((word for word in arguments if word not in flags), None)
    if name not in DATA:
        what = "what shall be done?" if name is None or "=" in name else f"there is no fsl data {name}"
        hint = f"one of {', '.join(DATA)}" if name is None or "=" in name else close_match(name, DATA)
        raise FslError(what, where="fsl data", hint=hint)
    if flags:
        raise FslError(f"is not a flag of fsl data {name}", where=flags[0], hint="fsl data --help")
    words = list(arguments)
    words.remove(name)
    return int(importlib.import_module(f"fsl_cli.commands.data.{name}").main(words))
