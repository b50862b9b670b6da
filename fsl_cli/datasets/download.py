"""Downloads: pooch verifies checksums, retries and renames; resuming partial downloads, which pooch lacks, is added here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pooch
import requests
from filelock import FileLock

from fsl_cli.datasets.pack import ProgressFactory, silent
from fsl_cli.errors import FslError

TIMEOUT = (10.0, 30.0)  # seconds to connect, seconds without a byte
CHUNK = 1 << 16
RETRIES = 2
pooch.get_logger().setLevel("WARNING")  # at INFO it reports every file on standard error


def fetch(url: str, target: Path, *, md5: str, progress: ProgressFactory | None = None) -> None:
    """Download ``url`` to ``target``, which is created only once it is complete and has the right checksum.

    Until then the data is in ``<target>.part``, from which the next attempt, or the next run, resumes. Does nothing if
    ``target`` exists, so that processes that start together download it once.

    Args:
        url: an http(s) address.
        target: the file to create; its folder is created if missing.
        md5: expected MD5 checksum, as hex digits.
        progress: reports the number of bytes; None: no progress.

    Raises:
        FslError: the server cannot be reached or refuses, the checksum differs, or the folder is not writable.
    """
    part = target.with_name(f"{target.name}.part")

    def receive(url: str, output_file: str, _pooch: object) -> None:
        _receive(url, part, progress or silent)
        os.replace(part, output_file)

    keeper = pooch.create(
        target.parent, base_url="", registry={target.name: f"md5:{md5}"}, urls={target.name: url}, retry_if_failed=RETRIES
    )
    with _writing(target.parent), FileLock(target.parent / f".{target.name}.lock"):
        if target.exists():
            return
        try:
            keeper.fetch(target.name, downloader=receive)
        except (requests.RequestException, ValueError) as problem:
            hint = "try again later, or get the file by other means"
            raise FslError(f"download failed: {_in_words(problem, url)}", where=url, hint=hint) from problem


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Create ``folder``; convert an OSError of writing to it to an FslError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as problem:
        raise FslError(
            f"cannot save a download: {problem.strerror or problem}",
            where=str(problem.filename or folder),
            hint="set data_dir or FSL_DATA_DIR to a folder you may write to",
        ) from problem


def _receive(url: str, part: Path, progress: ProgressFactory) -> None:
    """Append the missing bytes to ``part``; start over if the server does not support resuming.

    Raises:
        requests.RequestException: the file is incomplete.
    """
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink()
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            have = 0
        total = have + int(response.headers.get("Content-Length", 0))
        with part.open("ab" if have else "wb") as file, progress(f"downloading {part.stem}", total) as advance:
            advance(have)
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                advance(len(chunk))
        if part.stat().st_size < total:
            raise requests.ConnectionError(f"broke off after {part.stat().st_size} of {total} bytes")


def _in_words(problem: Exception, url: str) -> str:
    host = urlsplit(url).hostname
    if not isinstance(problem, requests.RequestException):
        return f"the file is not the one expected: {problem}"
    if isinstance(problem, requests.Timeout):
        return f"no answer from {host}"
    if problem.response is not None:
        return f"{host} answered {problem.response.status_code} {problem.response.reason}"
    if "broke" in str(problem):
        return f"the connection to {host} broke off"
    return f"no connection to {host} ({type(problem).__name__})"
