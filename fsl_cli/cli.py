"""The command line: verb to command, errors to one line, exit codes. Imports nothing heavy.

Exit codes: 0 everything was done and written; 1 something failed unexpectedly; 2 a problem the user can solve; 128 + its number
after a signal: 130 SIGINT (Ctrl-C), 143 SIGTERM, 129 SIGHUP.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from fsl_cli.compute import processes
from fsl_cli.compute.signals import exit_code, interruptible, interrupts_keep_their_type
from fsl_cli.errors import FslError, Problems, close_match, keep_traceback
from fsl_cli.show.streams import lasting_streams

VERBS = {
    "train": "meta-train, validate and test; -m runs a sweep",
    "eval": "meta-test a trained run again, on any task",
    "data": "data sets: what is here (ls), pack now (prepare), check (verify), look at (show)",
    "ls": "list algorithms, data sets, backbones, hardware and experiments",
    "new": "write a method, backbone or data set of your own: code, configuration and test of an example that works",
    "doctor": "check versions, device, folders and W&B",
    "completion": "make bash, zsh or fish complete commands, options, values and run folders",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the ``fsl`` command. Returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with lasting_streams() as streams, interruptible():
            code = processes.run(lambda: _exit_code(words)) if processes.launched() else _exit_code(words)
    except KeyboardInterrupt as interrupt:
        return exit_code(interrupt)
    lost = [stream.failure for stream in streams if stream.failure]
    if lost:
        print(f"error: output could not be written: {lost[0].strerror}", file=sys.stderr)
    return code or int(bool(lost))


def _exit_code(words: list[str]) -> int:
    """Run a verb and print what goes wrong."""
    try:
        with interrupts_keep_their_type():
            _check_working_folder()
            return _dispatch(words)
    except Problems as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    except FslError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        return exit_code(interrupt)
    except Exception as error:
        print(f"error: {keep_traceback(error)}", file=sys.stderr)
        return 1


def _check_working_folder() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise FslError("the working folder does not exist any more", where="fsl", hint="cd to another one") from error


def _dispatch(words: list[str]) -> int:
    ended = next((word for word in words if "\r" in word), None)
    if ended is not None:
        hint = "a script that was edited on Windows; remove them: sed -i 's/\\r$//' SCRIPT"
        raise FslError("has a carriage return in it", where=repr(ended), hint=hint)
    asks_help = words[:2] != ["completion", "for"] and any(word in ("--help", "-h") for word in words)
    named = [word for word in words if not word.startswith("-")]
    verb = next((word for word in named if word in VERBS), named[0] if named else None)
    if "--version" in words and words[:2] != ["completion", "for"]:
        from importlib.metadata import version

        print(f"fsl {version('fsl-cli')}")
        return 0
    if verb is None:
        from fsl_cli.settings import help_text

        print(help_text.general(VERBS))
        return 0 if asks_help or not words else 2
    if verb not in VERBS:
        raise FslError(f"there is no command {verb}", where="fsl", hint=close_match(verb, VERBS))
    if asks_help:
        from fsl_cli.settings import help_text

        print(help_text.of(verb, VERBS[verb]))
        return 0
    words.remove(verb)
    return int(importlib.import_module(f"fsl_cli.commands.{verb}").main(words))
