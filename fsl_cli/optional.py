"""Packages that are extras: imported only where they are used."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from types import ModuleType

from fsl_cli.errors import FslError, first_line


def optional(module: str, *, needed_for: str, package: str) -> ModuleType:
    """Import a module of a package that may be missing.

    Args:
        module: dotted name.
        needed_for: the option or file that asks for it, for the error message.
        package: its name for pip.

    Raises:
        FslError: it is not installed or does not import.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        what = f"needs {package}, which cannot be imported: {first_line(error)}"
        raise FslError(what, where=needed_for, hint=f"pip install {package}") from error


def learn2learn(module: str, *, needed_for: str) -> ModuleType:
    """Import ``learn2learn.<module>`` quietly (its dependency gym prints a notice on import).

    Args:
        module: dotted name below ``learn2learn``.
        needed_for: the option that asks for it, for the error message.

    Raises:
        FslError: learn2learn is not installed or does not import.
    """
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return importlib.import_module(f"learn2learn.{module}")
    except ImportError as error:
        raise FslError(
            f"needs learn2learn, which cannot be imported: {error}",
            where=needed_for,
            hint="run `make setup` in a checkout of fsl, which builds it; with pip: see 'learn2learn' in the README",
        ) from error
