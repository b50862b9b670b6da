"""Downloads from a local server that works, breaks the connection, refuses or sends wrong data."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fsl_cli.datasets.download import fetch
from fsl_cli.errors import FslError

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT; ``script`` lists the failures of the first requests, after which requests succeed."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[str] = []
        self.ranges: list[str | None] = []  # one entry for each request
        self.resumes = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        event = self.server.script.pop(0) if self.server.script else "fine"
        if event == "slow":
            time.sleep(0.3)
        if event.isdigit():
            self.send_error(int(event))
            return
        found = re.fullmatch(r"bytes=(\d+)-", asked or "")
        first = int(found[1]) if found and self.server.resumes else 0
        if first >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[first:] if event != "lie" else bytes(len(CONTENT) - first)
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if event == "break" else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait between attempts."""
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda seconds: None))


def failure(server: Server, target: Path) -> str:
    with pytest.raises(FslError) as caught:
        fetch(server.url, target, md5=MD5)
    assert not target.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_complete_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "data.zip"
    seen: list[object] = []

    @contextmanager
    def progress(what: str, total: int):  # type: ignore[no-untyped-def]
        seen.append((what, total))
        yield seen.append

    fetch(server.url, target, md5=MD5, progress=progress)
    assert target.read_bytes() == CONTENT
    assert seen[0] == ("downloading data.zip", len(CONTENT))
    assert sum(count for count in seen[1:] if isinstance(count, int)) == len(CONTENT)
    fetch(server.url, target, md5=MD5)
    assert len(server.ranges) == 1
    assert not list(target.parent.glob("*.part"))


def test_existing_file_is_not_downloaded(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"repacked by the user")
    fetch(server.url, tmp_path / "data.zip", md5=MD5)
    assert (tmp_path / "data.zip").read_bytes() == b"repacked by the user"
    assert server.ranges == []


def test_interrupted_download_resumes(server: Server, tmp_path: Path) -> None:
    server.script = ["break", "break"]
    fetch(server.url, tmp_path / "data.zip", md5=MD5)
    assert (tmp_path / "data.zip").read_bytes() == CONTENT
    assert server.ranges[0] is None
    starts = [int(str(asked)[len("bytes=") : -1]) for asked in server.ranges[1:]]
    assert 75_000 < starts[0] <= 150_000 < starts[1] <= 225_000  # what did not fill a chunk is asked for again


def test_next_run_resumes_after_every_attempt_failed(server: Server, tmp_path: Path) -> None:
    server.script = ["break"] * 3
    assert "broke off" in failure(server, tmp_path / "data.zip")
    fetch(server.url, tmp_path / "data.zip", md5=MD5)
    assert (tmp_path / "data.zip").read_bytes() == CONTENT
    assert server.ranges[-1] is not None


def test_server_without_resuming_sends_the_whole_file_again(server: Server, tmp_path: Path) -> None:
    server.script, server.resumes = ["break"], False
    fetch(server.url, tmp_path / "data.zip", md5=MD5)
    assert (tmp_path / "data.zip").read_bytes() == CONTENT
    assert len(server.ranges) == 2


@pytest.mark.parametrize("leftover", [b"of another version", CONTENT, CONTENT + b"more"])
def test_useless_partial_file_is_discarded(server: Server, tmp_path: Path, leftover: bytes) -> None:
    (tmp_path / "data.zip.part").write_bytes(leftover)
    fetch(server.url, tmp_path / "data.zip", md5=MD5)
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


def test_wrong_checksum_is_refused(server: Server, tmp_path: Path) -> None:
    server.script = ["lie"] * 3
    assert MD5 in failure(server, tmp_path / "data.zip")
    assert not list(tmp_path.glob("data*"))


def test_correct_file_after_a_wrong_checksum(server: Server, tmp_path: Path) -> None:
    server.script = ["lie"]
    fetch(server.url, tmp_path / "data.zip", md5=MD5)
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("status", ["404", "403", "503"])
def test_refused_requests_are_one_line(server: Server, tmp_path: Path, status: str) -> None:
    server.script = [status] * 3
    assert f"127.0.0.1 answered {status}" in failure(server, tmp_path / "data.zip")
    assert len(server.ranges) == 3


def test_refused_then_fine(server: Server, tmp_path: Path) -> None:
    server.script = ["503", "break"]
    fetch(server.url, tmp_path / "data.zip", md5=MD5)
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


def test_no_network(server: Server, tmp_path: Path) -> None:
    server.shutdown()
    server.socket.close()
    assert "no connection to 127.0.0.1" in failure(server, tmp_path / "data.zip")


def test_unwritable_folder(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = failure(server, tmp_path / "file" / "data.zip")
    assert "cannot save" in message
    assert "FSL_DATA_DIR" in message
    assert server.ranges == []


def test_processes_that_start_together_download_once(server: Server, tmp_path: Path) -> None:
    server.script = ["slow"]  # the others are there before the first is done
    threads = [threading.Thread(target=fetch, args=(server.url, tmp_path / "data.zip"), kwargs={"md5": MD5}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "data.zip").read_bytes() == CONTENT
    assert len(server.ranges) == 1
