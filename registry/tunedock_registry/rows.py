"""From rows to records."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T")


def to_record(kind: type[T], row: Any, **given: Any) -> T:
    """A record whose fields are the row's attributes of the same names, but for those `given`."""
    names = (field.name for field in fields(kind) if field.name not in given)  # type: ignore[arg-type]
    return kind(**{name: getattr(row, name) for name in names}, **given)
