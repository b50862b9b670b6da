"""Compare time and memory with learn2learn 0.2.0, on the same tensors, in one process, with alternating runs.

    python scripts/benchmark.py                         # the rows of the README, under two minutes on two cores
    python scripts/benchmark.py --suite full --json benchmark.json
    python scripts/benchmark.py --suite busy            # a training step alone and beside other work, by how threads wait
    python scripts/benchmark.py --suite startup         # CPU time of starting a run
    python scripts/benchmark.py --suite loading         # packing image files, and drawing episodes beside two libraries

Before an outer gradient is timed, both sides must compute the same loss. Iterations, sampling and testing use each side's
own data pipeline. Every time is the median of alternating runs, after one warm-up run. Peak memory is that of tensors, in
addition to the memory allocated before (on CUDA, as reported by PyTorch).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsl_cli  # noqa: F401  # how OpenMP's threads wait is decided when torch is imported

# isort: split
import benchmark_loading
import benchmark_peer as peer
import benchmark_processes
import platformdirs
import torch
from benchmark_processes import Pair
from benchmark_rows import SUITES, Bench
from benchmark_timing import Row
from rich.console import Console
from rich.table import Table

from fsl_cli.compute import hardware
from fsl_cli.datasets.glyphs import Glyphs
from fsl_cli.datasets.omniglot import Omniglot
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.errors import FslError
from fsl_cli.results import environment

PAIRS = {**benchmark_processes.SUITES, **benchmark_loading.SUITES}


def images() -> tuple[str, ClassImages, ClassImages, ClassImages]:
    """Omniglot if it is installed, otherwise glyphs: name, train and test split, and some classes without rotations."""
    data_dir = Path(os.environ.get("FSL_DATA_DIR") or platformdirs.user_data_dir("fsl"))
    cache_dir = Path(os.environ.get("FSL_CACHE_DIR") or platformdirs.user_cache_dir("fsl"))
    try:
        dataset: Any = Omniglot(data_dir, cache_dir, download=False)
        train, test = dataset.split("train"), dataset.split("test")
        name = "omniglot"
    except FslError:
        dataset = Glyphs(cache_dir)
        train, test = dataset.split("train"), dataset.split("test")
        name = "glyphs"
    few = train.counts[:200]
    return name, train, test, ClassImages(train.images[: int(few.sum())], few, train.names[:200])


def machine(used: hardware.Hardware, dataset: str) -> dict[str, Any]:
    """The machine and the software versions of the measurement."""
    found = environment.describe(used.device, shlex.join(sys.argv))
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else found["device_name"],
        **{name: found[name] for name in ("cpus", "threads", "device", "device_name", "python", "platform", "git_commit")},
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "precision": used.precision,
        "torch": torch.__version__,
        "learn2learn": environment.version("learn2learn"),
        "images": dataset,
    }


def table(rows: list[Row]) -> Table:
    """The results as a table for the terminal."""
    made = Table(title="s: median of alternating runs; MB: peak of tensor memory", title_justify="left")
    made.add_column("row", no_wrap=True)
    for name in ("fsl s", "l2l s", "ratio", "fsl MB", "l2l MB"):
        made.add_column(name, justify="right")
    for row in rows:
        figures = (
            f"{row.ours_s:.3g}",
            f"{row.peer_s:.3g}",
            f"{row.ratio:.1f}x",
            f"{row.ours_peak_mb:.0f}",
            f"{row.peer_peak_mb:.0f}",
        )
        made.add_row(row.name, *figures)
    return made


def pairs_table(pairs: Sequence[Pair]) -> Table:
    """The results as a table for the terminal."""
    made = Table(title="s: median of alternating runs", title_justify="left")
    made.add_column("row", no_wrap=True)
    for name in ("first side", "s", "second side", "s", "ratio"):
        made.add_column(name, justify="right")
    for pair in pairs:
        (one, other), (seconds, others) = pair.sides, pair.seconds
        made.add_row(pair.name, one, f"{seconds:.3g}", other, f"{others:.3g}", f"{pair.ratio:.2f}x")
    return made


def against_learn2learn(chosen: argparse.Namespace, used: hardware.Hardware, console: Console) -> tuple[str, list[Row]]:
    """Measure and print the rows of a suite. Returns the name of the data set and the rows."""
    name, train, test, pictures = images()
    peer.imported("algorithms")
    console.print(described(machine(used, name)), style="dim")
    make, repeats = SUITES[chosen.suite]
    rows = []
    with tempfile.TemporaryDirectory() as scratch, console.status("measuring") as status:
        peer.write_pictures(pictures, Path(scratch))
        for row in make(Bench(used, repeats, train, test, Path(scratch), chosen.task_chunk)):
            rows.append(row)
            console.print(f"{row.name}: {row.ratio:.1f}x  {row.what}")
            status.update(f"measuring; {row.name} is done")
    console.print(table(rows))
    iteration = next(row.ours_s for row in rows if row.name == "iteration_with_data")
    console.print(f"MAML's 60,000 iterations of iteration_with_data: {60_000 * iteration / 3600:.1f} hours")
    return name, rows


def against_itself(suite: str, used: hardware.Hardware, console: Console) -> tuple[str, list[Pair]]:
    """Measure and print the pairs of a suite. Returns the name of the data set and the pairs."""
    make, repeats, name = PAIRS[suite]
    console.print(described(machine(used, name)), style="dim")
    pairs = []
    with console.status("measuring"):
        for pair in make(repeats):
            pairs.append(pair)
            console.print(f"{pair.name}: {pair.what}")
    console.print(pairs_table(pairs))
    return name, pairs


def described(about: dict[str, Any]) -> str:
    """One line that describes the machine."""
    return " | ".join(f"{key} {value}" for key, value in about.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the chosen suite, print its results and write them to the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    suites = [*SUITES, *PAIRS]
    parser.add_argument("--suite", choices=suites, default="quick", help="quick: under two minutes on two cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and results to this file")
    parser.add_argument("--device", default="auto", help="as hardware.device; busy, startup and loading always run on the CPU")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="precision of fsl")
    parser.add_argument("--task-chunk", type=int, help="tasks that fsl computes at once; as hardware.task_chunk")
    chosen = parser.parse_args(arguments)
    console = Console()
    rows: Sequence[Row | Pair]
    try:
        if chosen.suite in PAIRS:
            used = hardware.set_up("cpu", "fp32", None, True, "auto")
            name, rows = against_itself(chosen.suite, used, console)
        else:
            used = hardware.set_up(chosen.device, chosen.precision, None, False, "auto")
            name, rows = against_learn2learn(chosen, used, console)
    except FslError as error:
        parser.error(str(error))
    if chosen.json:
        found = {"machine": machine(used, name), "rows": [asdict(row) for row in rows]}
        chosen.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
