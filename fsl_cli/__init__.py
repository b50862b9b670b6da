"""fsl: few-shot and meta-learning experiments from one command line, and from Python: see `fsl_cli.api`."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Read by OpenMP when torch is imported. Threads that spin while they wait take the processor away from whatever runs beside
# them: a training step then takes up to four times as long. GNU's and LLVM's OpenMP both know the first variable. The second
# lets threads of GNU's OpenMP spin for a moment before they sleep: waking them up for every small layer costs more than that.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from fsl_cli.api import evaluate, load, read_runs, train
    from fsl_cli.errors import FslError

__all__ = ["FslError", "evaluate", "load", "read_runs", "train"]


def __getattr__(name: str) -> Any:
    """Import torch only when something of the Python interface is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("fsl_cli.errors" if name == "FslError" else "fsl_cli.api"), name)
