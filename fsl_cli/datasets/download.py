"""Downloads that are resumed when they break off, and never taken for whole before their checksum says so."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import requests
from filelock import FileLock

from fsl_cli.datasets.pack import ProgressFactory, silent
from fsl_cli.errors import FslError

TIMEOUT = (10.0, 30.0)  # seconds to connect, seconds without a byte
CHUNK = 1 << 16


def fetch(
    url: str,
    target: Path,
    *,
    md5: str,
    progress: ProgressFactory | None = None,
    attempts: int = 3,
    wait: float = 1.0,
) -> None:
    """Download ``url`` to ``target``, which appears only when it is whole and has the right checksum.

    Until then the bytes are in ``<target>.part``, from where the next attempt, or the next run, goes on. Does nothing
    when ``target`` is there, so processes that start together download once.

    Args:
        url: an http(s) address.
        target: the file to make; its folder is created when missing.
        md5: hex digest the file must have.
        progress: told of every byte; None is silent.
        attempts: how often to try, the first time included.
        wait: seconds before the second attempt; doubles with each further one.

    Raises:
        FslError: unreachable, refused, altered, or the folder cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    problem = ""
    with _writing(target.parent), FileLock(target.parent / f".{target.name}.lock"):
        for attempt in range(attempts):
            if target.exists():
                return
            if attempt:
                time.sleep(wait * 2 ** (attempt - 1))
            resumed = part.exists()
            try:
                _receive(url, part, progress or silent)
            except requests.RequestException as refusal:
                problem = _in_words(refusal, url)
                if not _may_pass(refusal):
                    break
                continue
            found = _md5(part)
            if found == md5:
                os.replace(part, target)
                return
            part.unlink()
            problem = f"{target.name} has md5 {found}, expected {md5}"
            if not resumed:  # a whole, fresh copy is wrong: the next one would be too
                break
    raise FslError(f"download failed: {problem}", where=url, hint="try again later, or get the file by other means")


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


def _may_pass(problem: requests.RequestException) -> bool:
    """Whether trying again can help: not when the server says that the request itself is wrong."""
    if problem.response is None:
        return True
    status = problem.response.status_code
    return status >= 500 or status in (408, 416, 429)


def _in_words(problem: requests.RequestException, url: str) -> str:
    host = urlsplit(url).hostname
    if isinstance(problem, requests.Timeout):
        return f"no answer from {host}"
    if problem.response is not None:
        return f"{host} answered {problem.response.status_code} {problem.response.reason}"
    if "broke" in str(problem):
        return f"the connection to {host} broke off"
    return f"no connection to {host} ({type(problem).__name__})"


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
