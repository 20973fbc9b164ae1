"""JSON from strangers: no duplicate keys, no NaN, no endless nesting or numbers."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from tunedock_api.errors import Rejected


def loads_object(raw: bytes, what: str) -> dict[str, Any]:
    """Parses one JSON object. Raises Rejected, naming `what`, for anything else."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except _Refused as error:
        raise Rejected(f"{what} {error}.") from error
    except RecursionError as error:
        raise Rejected(f"{what} is nested too deeply.") from error
    except ValueError as error:
        raise Rejected(f"{what} is not valid JSON.") from error
    if not isinstance(value, dict):
        raise Rejected(f"{what} must be a JSON object, not {type(value).__name__}.")
    return value


class _Refused(ValueError):
    """Well-formed JSON that we do not take."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Refused(f"has the key {repeated[:80]!r} twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise _Refused(f"holds {name}, which is not a JSON number")
