"""What a database backend provides: an engine for reading, one for writing, and names for its failures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from .bell import Bell
from .turns import Turns


class Fault(Enum):
    """Failures that are not the caller's and that pass: the disk is full, others write, the database is away."""

    FULL = auto()
    BUSY = auto()
    DOWN = auto()


@dataclass(frozen=True)
class Engines:
    """`reader` and `writer` share one pool. `fault` names a driver's error, or says None: a mistake of ours.
    `description` is for the operator: product, version, how durable.
    """

    reader: Engine
    writer: Engine
    fault: Callable[[DBAPIError], Fault | None]
    bell: Bell
    turns: Turns
    description: str

    def dispose(self) -> None:
        self.bell.close()
        self.reader.dispose()
