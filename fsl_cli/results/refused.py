"""Record why fsl has refused to start a run, in the place of the status that the run would have written; for scripts.

python -m fsl_cli.results.refused FOLDER LOG [KEY=NUMBER ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

from fsl_cli.results.files import to_json, write_text


def main(folder: str, log: str, *task: str) -> None:
    """Write ``status.json`` with the error lines of a log.

    Args:
        folder: the run folder; nothing is done if the run has written a status itself.
        log: file with what the command printed.
        task: the task that was asked for, ``ways=5`` and so on.
    """
    status = Path(folder) / "status.json"
    if status.exists():
        return
    lines = Path(log).read_text(errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    asked = {key: int(value) for key, _, value in (word.partition("=") for word in task)}
    content = {"state": "failed", "error": "; ".join(errors) or "no reason given"}
    write_text(status, to_json(content | ({"task": asked} if asked else {})))


if __name__ == "__main__":
    main(*sys.argv[1:])
