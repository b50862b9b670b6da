"""The exceptions a user is meant to read, and the close match that goes with them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class FslError(Exception):
    """A problem the user can act on: printed as one line, no traceback.

    Args:
        what: what is wrong, with the offending value.
        where: the option, file or folder it was found in.
        hint: the valid values, or what to do next.

    Attributes:
        exit_code: of the program that ends with it.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(what)

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        hint = f" ({self.hint})" if self.hint else ""
        return printable(" ".join(f"{where}{self.what}{hint}".split()))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.what, self.where, self.hint)


def printable(text: str) -> str:
    r"""The text with control characters, line ends too, written as ``\x1b`` and ``\n``.

    Names of files and classes may hold any character, also those that move the cursor of a terminal.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def keep_traceback(error: Exception) -> str:
    """Write the traceback of a bug to a file, for the report. Returns one line that says what and where it is."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="fsl-error-", suffix=".log", delete=False) as file:
        traceback.print_exception(type(error), error, error.__traceback__, file=file)
    return f"unexpected {type(error).__name__}: {first_line(error)} (traceback: {file.name})"


class UnexpectedError(FslError):
    """A failure that is not the user's to solve; it names the file that holds the traceback."""

    exit_code = 1

    def __init__(self, what: str) -> None:
        super().__init__(what)

    def __reduce__(self) -> tuple[object, ...]:
        return UnexpectedError, (self.what,)


class Problems(FslError):
    """Several problems found together; each is printed as its own line."""

    def __init__(self, problems: Sequence[FslError]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = list(problems)

    def __reduce__(self) -> tuple[object, ...]:
        return Problems, (self.problems,)


def raise_all(problems: Sequence[FslError]) -> None:
    """Raise `Problems` if there are any, repeated lines once."""
    if problems:
        raise Problems(list({str(problem): problem for problem in problems}.values()))


def close_match(word: str, valid: Iterable[str]) -> str:
    """Hint for a misspelled ``word``: the closest valid one and, if they are few, all of them."""
    valid = sorted(valid)
    matches = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    meant = f"did you mean {matches[0]}?" if matches else ""
    every = f"valid: {', '.join(valid)}" if 0 < len(valid) <= 15 or not matches else ""
    return " ".join(part for part in (meant, every) if part)


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its type when it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _rebuild(what: str, where: str | None, hint: str | None) -> FslError:
    return FslError(what, where=where, hint=hint)
