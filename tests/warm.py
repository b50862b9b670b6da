"""Processes of `fsl` without import time: forks of one server process that has only imported all modules.

`Warm` starts the server. Its ``fsl`` replaces the installed program, for scripts (``FSL=…``): it sends its arguments, folder,
environment and streams to the server, forwards SIGTERM and SIGINT to the fork, and exits with the fork's exit code. Variables
that are read when Python starts (PYTHONPATH, OMP_NUM_THREADS, …) have the server's values.
"""

from __future__ import annotations

import array
import contextlib
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

CLIENT = """#!{python} -IS
import array, json, os, signal, socket, struct, sys
server = socket.socket(socket.AF_UNIX)
server.connect({socket!r})
request = json.dumps([{module!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
server.sendmsg([struct.pack("q", len(request))], streams)
server.sendall(request)
answer = server.makefile()
process = int(answer.readline())
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: os.kill(process, number))
code = int(answer.readline())
sys.exit(code if code >= 0 else 128 - code)
"""


class Process:
    """A forked process: its process id and its exit code."""

    def __init__(self, connection: socket.socket) -> None:
        self._answer = connection.makefile()
        self.pid = int(self._answer.readline())

    def wait(self) -> int:
        """The exit code, or the negative number of the signal that ended it."""
        return int(self._answer.readline())


class Warm:
    """The process that is forked; ``folder`` gets its socket and its ``fsl`` and ``python``."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "socket"
        self.fsl = folder / "fsl"
        for program, module in ((self.fsl, "fsl_cli"), (folder / "tables", "fsl_cli.results.tables")):
            self._write(program, CLIENT.format(python=sys.executable, socket=str(self._socket), module=module))
        tables = f'if [ "$1 $2" = "-m fsl_cli.results.tables" ]; then shift 2; exec {folder}/tables "$@"; fi'
        self._write(folder / "python", f'#!/bin/sh\n{tables}\nexec {sys.executable} "$@"\n')
        words = [sys.executable, __file__, str(self._socket)]
        self._server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._server.stdout
        assert self._server.stdout.readline() == b"ready\n"

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *words: str, cwd: Path, log: Path, module: str = "fsl_cli", **environment: str) -> Process:
        """``python -m module`` with these words, or ``python -c`` with code; what it prints goes to the file ``log``."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self._socket))
        request = json.dumps([module, words, str(cwd), {**os.environ, **environment}]).encode()
        with log.open("wb") as output, open(os.devnull) as nothing:
            streams = array.array("i", [nothing.fileno(), output.fileno(), output.fileno()])
            connection.sendmsg([struct.pack("q", len(request))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
            connection.sendall(request)
        return Process(connection)

    def close(self) -> None:
        assert self._server.stdin
        self._server.stdin.close()  # which ends it
        self._server.wait()


def _serve(path: str) -> None:
    import fsl_cli

    for module in pkgutil.walk_packages(fsl_cli.__path__, "fsl_cli."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks that attend to requests
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _attend(connection)
            os._exit(0)
        connection.close()


def _attend(connection: socket.socket) -> None:
    """Run one request in a fork of its own and tell its process id and its end."""
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as file:
        module, words, folder, environment = json.loads(file.read(struct.unpack("q", size)[0]))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    process = os.fork()
    if process == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        _run(module, words, folder, environment)
    for stream in streams:
        os.close(stream)
    with contextlib.suppress(BrokenPipeError):  # nobody waits for it
        connection.sendall(f"{process}\n".encode())
        _, status = os.waitpid(process, 0)
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _run(module: str, words: list[str], folder: str, environment: Mapping[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which what runs the tests may ignore
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *words[1:]] if module == "-c" else [module, *words]
    code: object = 1
    try:
        if module == "-c":
            exec(compile(words[0], "<code>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    _serve(sys.argv[1])
