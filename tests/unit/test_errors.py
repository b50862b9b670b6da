"""Errors are one line each and are reported together."""

from __future__ import annotations

import pickle

import pytest

from fsl_cli.errors import FslError, Problems, close_match, raise_all


def test_an_error_is_one_line_of_where_what_and_hint():
    assert str(FslError("is\nwrong", where="here", hint="do\n  that")) == "here: is wrong (do that)"
    assert str(FslError("is wrong")) == "is wrong"


def test_errors_survive_pickling():
    one = FslError("what", where="where", hint="hint")
    many = pickle.loads(pickle.dumps(Problems([one, one])))
    assert str(pickle.loads(pickle.dumps(one))) == str(one)
    assert list(map(str, many.problems)) == [str(one)] * 2


def test_repeated_problems_are_reported_once():
    raise_all([])
    with pytest.raises(Problems) as error:
        raise_all([FslError("a"), FslError("b"), FslError("a")])
    assert list(map(str, error.value.problems)) == ["a", "b"]


def test_close_match():
    assert close_match("protnet", ["maml", "protonet"]) == "did you mean protonet? valid: maml, protonet"
    assert close_match("xyz", ["maml", "protonet"]) == "valid: maml, protonet"
    many = [f"option{index}" for index in range(30)]
    assert close_match("option7x", many) == "did you mean option7?"
