"""Read a ``.wandb`` file, the transaction log that an offline run of Weights & Biases leaves.

The file is a LevelDB log behind a header of 7 bytes: blocks of 32 KiB, in them records with a header of 7 bytes
(CRC-32, length, type), a record being whole or a first, middle or last part; each holds a protobuf ``Record``.
"""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class WandbFile:
    """The data that a run sent to W&B.

    Attributes:
        history: one dictionary per call of ``run.log``; nested keys are joined by dots.
        summary: the run's summary, nested keys joined by dots; ``config`` its configuration.
        artifacts: ``type``, ``aliases`` and ``metadata`` of each logged artifact, by name.
        metrics: the ``step_metric`` of each defined metric, by name or glob.
        exit_code: what ``run.finish`` was given; None when the run did not finish.
    """

    run_id: str = ""
    project: str = ""
    group: str = ""
    name: str = ""
    tags: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None

    def column(self, name: str) -> dict[int, Any]:
        """A metric by iteration."""
        return {row["iteration"]: row[name] for row in self.history if name in row}


def find_wandb(folder: Path) -> Path:
    """The one ``.wandb`` file of a run folder."""
    (path,) = folder.glob("wandb/*run-*/*.wandb")
    return path


def read_wandb(path: Path, patience: float = 20.0) -> WandbFile:
    """Read a ``.wandb`` file, or that of a run folder.

    W&B's service may write the end of the file a moment after ``run.finish()`` has returned, hence the patience.
    """
    deadline = time.monotonic() + patience
    content = _read(path)
    while content.exit_code is None and time.monotonic() < deadline:
        time.sleep(0.1)
        content = _read(path)
    return content


def _read(path: Path) -> WandbFile:
    from wandb.proto.wandb_internal_pb2 import Record

    content = WandbFile()
    for data in records((find_wandb(path) if path.is_dir() else path).read_bytes()):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            content.run_id, content.project = run.run_id, run.project
            content.group, content.name, content.tags = run.run_group, run.display_name, list(run.tags)
            _nest(content.config, run.config.update)
        elif kind == "config":
            _nest(content.config, record.config.update)
        elif kind == "summary":
            content.summary |= _flat(record.summary.update)
        elif kind == "history":
            content.history.append(_flat(record.history.item))
        elif kind == "artifact":
            _add_artifact(content, record.artifact)
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            _add_artifact(content, record.request.log_artifact.artifact)
        elif kind == "metric":
            metric = record.metric
            content.metrics[metric.name or metric.glob_name] = metric.step_metric
        elif kind == "exit":
            content.exit_code = record.exit.exit_code
    return content


def records(log: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log, their checksums verified."""
    assert log[:4] == b":W&B", "no .wandb file"
    position, parts = HEADER, b""
    while position + HEADER <= len(log):
        if BLOCK - position % BLOCK < HEADER:  # the rest of a block that is too short for a header
            position += BLOCK - position % BLOCK
            continue
        checksum, length, kind = struct.unpack("<IHB", log[position : position + HEADER])
        data = log[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind == 0 and length == 0:
            continue
        assert len(data) == length, "the file was cut off"
        assert zlib.crc32(bytes([kind]) + data) == checksum, "wrong checksum"
        assert kind in (WHOLE, FIRST, MIDDLE, LAST)
        parts = data if kind in (WHOLE, FIRST) else parts + data
        if kind in (WHOLE, LAST):
            yield parts


def _flat(items: Iterable[Any]) -> dict[str, Any]:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def _nest(values: dict[str, Any], items: Iterable[Any]) -> None:
    for item in items:
        *parents, last = list(item.nested_key) or [item.key]
        node = values
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = json.loads(item.value_json)


def _add_artifact(content: WandbFile, record: Any) -> None:
    metadata = json.loads(record.metadata or "{}")
    content.artifacts[record.name] = {"type": record.type, "aliases": list(record.aliases), "metadata": metadata}
