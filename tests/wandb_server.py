"""A W&B server for tests, on the loopback, in a process of its own: ``python wandb_server.py`` prints its port and requests.

It answers as much of W&B's GraphQL as a run needs, and accepts everything that is uploaded.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "0123456789abcdef0123456789abcdef01234567"


class WandbServer:
    """The server's process; `requests` are read from the file it writes them to.

    Args:
        log: file for the requests, one JSON object per line.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        words = [sys.executable, "-S", __file__, str(log)]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ""})
        assert self._process.stdout
        self.environment = {
            "WANDB_BASE_URL": f"http://127.0.0.1:{int(self._process.stdout.readline())}",
            "WANDB_API_KEY": KEY,
            "WANDB_MODE": "online",
        }

    def requests(self) -> list[dict[str, Any]]:
        """``path`` and ``body`` of every request so far."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def history(self) -> list[list[dict[str, Any]]]:
        """The uploads of metrics; in each, the lines from its offset on."""
        streams = [each["body"].get("files", {}) for each in self.requests() if each["path"].endswith("/file_stream")]
        chunks = [each["wandb-history.jsonl"] for each in streams if "wandb-history.jsonl" in each]
        return [[{"offset": each["offset"]}, *map(json.loads, each["content"])] for each in chunks]

    def config(self) -> dict[str, Any]:
        """The configuration of the run, as it was sent first."""
        sent = [each["body"].get("variables", {}) for each in self.requests() if each["path"] == "/graphql"]
        found = next(json.loads(each["config"]) for each in sent if each.get("config"))
        return {key: each["value"] for key, each in found.items() if key != "_wandb"}

    def stop(self) -> None:
        """The server does not answer any more."""
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """The server vanishes."""
        self._process.kill()
        self._process.wait()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer({})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(raw) if "json" in self.headers.get("Content-Type", "") else {}
        with open(sys.argv[1], "a") as log:
            log.write(json.dumps({"path": self.path, "body": body}) + "\n")
        if self.path == "/graphql":
            self._answer({"data": _data(body["query"], body.get("variables") or {}, f"http://{self.headers['Host']}")})
        else:
            self._answer({"exitcode": None, "limits": {}})

    def _answer(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


def _data(query: str, given: dict[str, Any], address: str) -> Any:
    if "upsertBucket" in query:
        project = {"id": "p", "name": given.get("project"), "entity": {"id": "e", "name": "me"}}
        names = {"id": "b", "name": given.get("name"), "displayName": given.get("displayName"), "sweepName": None}
        return {
            "upsertBucket": {"bucket": {**names, "config": "{}", "historyLineCount": 0, "project": project}, "inserted": True}
        }
    if "createRunFiles" in query:
        files = [{"name": name, "uploadUrl": f"{address}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
    if "createArtifact(" in query:
        sequence = {"id": "s", "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}
    if "viewer" in query:
        return {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
    if "ArtifactType(" in query:
        return {"project": {"artifact": None}}
    return {"serverInfo": {"features": []}, "model": {"bucket": None}, "entity": None}


if __name__ == "__main__":
    Path(sys.argv[1]).touch()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
