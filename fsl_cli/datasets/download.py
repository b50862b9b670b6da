"""Downloads: pooch checks, retries and moves into place; what broke off is gone on with, which pooch cannot do."""

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
pooch.get_logger().setLevel("WARNING")  # it would announce every file on standard error


def fetch(url: str, target: Path, *, md5: str, progress: ProgressFactory | None = None) -> None:
    """Download ``url`` to ``target``, which appears only when it is whole and has the right checksum.

    Until then the bytes are in ``<target>.part``, from where the next attempt, or the next run, goes on. Does nothing
    when ``target`` is there, so processes that start together download once.

    Args:
        url: an http(s) address.
        target: the file to make; its folder is created when missing.
        md5: hex digest the file must have.
        progress: told of every byte; None is silent.

    Raises:
        FslError: unreachable, refused, altered, or the folder cannot be written.
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
    """Create ``folder``; problems of writing there become an FslError."""
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
    """Append to ``part`` what it lacks; from the start when the server cannot continue.

    Raises:
        requests.RequestException: anything short of a whole file.
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
