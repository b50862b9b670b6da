"""Sizes of episodes: a number, or a range from which every episode draws its own, written ``1..10``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, TypeAdapter, ValidatorFunctionWrapHandler
from pydantic_core import CoreSchema, core_schema

_RANGE = re.compile(r"\s*(\d+)\s*\.\.\s*(\d+)\s*")


@dataclass(frozen=True)
class Range:
    """The whole numbers ``low .. high``, both included, all equally likely; ``low < high``."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"


Size = int | Range


def bounds(size: Size) -> tuple[int, int]:
    """The smallest and the largest value of a size."""
    return (size.low, size.high) if isinstance(size, Range) else (size, size)


def largest(size: Size | None) -> int | None:
    """The largest value of a size; None if there is none."""
    return None if size is None else bounds(size)[1]


def sized(low: int, high: int) -> Size:
    """The size of these bounds: a number if they are equal."""
    return low if low == high else Range(low, high)


@dataclass(frozen=True)
class AtLeast:
    """Annotation of a `Size`: pydantic reads a number, or a range written ``low..high``, of at least ``least``."""

    least: int

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema; ranges are written as they are read."""
        as_written = core_schema.plain_serializer_function_ser_schema(
            lambda size: str(size) if isinstance(size, Range) else size
        )
        number = core_schema.int_schema(ge=self.least)
        return core_schema.no_info_wrap_validator_function(_read, number, serialization=as_written)


def _read(value: Any, number: ValidatorFunctionWrapHandler) -> Size:
    if isinstance(value, Range):
        return sized(number(value.low), number(value.high))
    found = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return int(number(value))
    low, high = (number(int(each)) for each in found.groups())
    if low > high:
        raise ValueError(f"should be {high}..{low}: the smaller number comes first")
    return sized(low, high)


def read_ways(value: Any) -> Size | None:
    """The ways of a saved configuration.

    Raises:
        pydantic.ValidationError: it is neither a number nor a range.
    """
    return _WAYS.validate_python(value)


Ways = Annotated[Size, AtLeast(2)]
Count = Annotated[Size, AtLeast(1)]
_WAYS: TypeAdapter[Size | None] = TypeAdapter(Ways | None)
