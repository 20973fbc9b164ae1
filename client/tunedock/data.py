"""Training data in whatever form the caller has it, as one seekable JSONL stream.

Accepted: a path, an iterable of dicts, a `datasets.Dataset`, a pandas frame. None of those libraries is imported.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast, runtime_checkable

from tunedock_api.errors import BadInput

_IN_MEMORY_BYTES = 8 << 20


@runtime_checkable
class Frame(Protocol):
    """What we need of a pandas frame, and what tells it from a `datasets.Dataset`."""

    def iterrows(self) -> Any: ...

    def to_dict(self, orient: str) -> list[dict[str, Any]]: ...


Examples = Iterable[Mapping[str, Any]]
TrainingData = str | PathLike[str] | Examples | Frame


@contextmanager
def as_jsonl(data: TrainingData) -> Iterator[tuple[str, BinaryIO]]:
    """Yields (filename, stream at its start). Large iterables spill to a temporary file, so memory stays flat.

    Raises BadInput when the path cannot be read or an example is not a JSON object.
    """
    if isinstance(data, str | PathLike):
        path = Path(data)
        with _opened(path) as stream:
            yield path.name, stream
        return
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as spool:
        for number, example in enumerate(_rows(data), 1):
            spool.write(_line(example, number))
        spool.seek(0)
        yield "examples.jsonl", cast(BinaryIO, spool)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        reason = (error.strerror or "cannot be opened").lower()
        raise BadInput(f"cannot read {str(path)!r}: {reason}.", param="data") from error


def _rows(data: Examples | Frame) -> Iterable[Any]:
    return data.to_dict("records") if isinstance(data, Frame) else data


def _line(example: Any, number: int) -> bytes:
    if not isinstance(example, Mapping):
        raise BadInput(
            f"example {number} is {type(example).__name__}, not a mapping: give dicts with `messages`, or "
            "`prompt` and `completion`.",
            param="data",
        )
    try:
        return json.dumps(dict(example), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise BadInput(f"example {number} is not plain JSON: {error}.", param="data") from error
