"""How fast and how lean: this project against learn2learn 0.2.0, on the same tensors, in one process, alternating.

    python scripts/benchmark.py                         # the rows of the README, under two minutes on two cores
    python scripts/benchmark.py --suite full --json benchmark.json

Before an outer gradient is timed, both sides must give the same loss; iterations, sampling and testing run each side with its
own data pipeline. A figure is the median of alternating runs after one that is
not counted. Peak memory is that of tensors, above what was there before (on CUDA as PyTorch counts it).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import benchmark_peer as peer
import platformdirs
import torch
from benchmark_rows import SUITES, Bench
from benchmark_timing import Row
from rich.console import Console
from rich.table import Table

from fsl_cli.compute import hardware
from fsl_cli.datasets.class_images import ClassImages
from fsl_cli.datasets.glyphs import Glyphs
from fsl_cli.datasets.omniglot import Omniglot
from fsl_cli.errors import FslError
from fsl_cli.results import environment


def images() -> tuple[str, ClassImages, ClassImages, ClassImages]:
    """Omniglot where it is at hand, else glyphs: name, train and test split, and some classes without rotations."""
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
    """Where it was measured."""
    found = environment.describe(used.device)
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
    """For people."""
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="quick", help="quick: under two minutes on two cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and rows there")
    parser.add_argument("--device", default="auto", help="as hardware.device")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of our side")
    parser.add_argument("--task-chunk", type=int, help="tasks computed at once on our side; as hardware.task_chunk")
    chosen = parser.parse_args(arguments)
    console = Console()
    try:
        used = hardware.set_up(chosen.device, chosen.precision, None, False, "auto")
        name, train, test, pictures = images()
        peer.imported("algorithms")
    except FslError as error:
        parser.error(str(error))
    about = machine(used, name)
    console.print(" | ".join(f"{key} {value}" for key, value in about.items()), style="dim")
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
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": about, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
