"""learn2learn, which is an extra: imported only where it is used."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from types import ModuleType

from fsl_cli.errors import FslError


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
