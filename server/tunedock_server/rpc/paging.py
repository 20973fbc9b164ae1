"""Lists: REST's defaults and bounds for messages without them. Pure."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message
from tunedock_api.errors import BadInput
from tunedock_api.jsonpb import Json, from_answer

M = TypeVar("M", bound=Message)

DEFAULT_LIMIT, MAX_LIMIT = 20, 100


def limit_of(asked: int, most: int = MAX_LIMIT) -> int:
    """0 means the default. Raises BadInput above `most`."""
    if asked > most:
        raise BadInput(f"'limit' must be at most {most}.", param="limit")
    return asked or min(DEFAULT_LIMIT, most)


def after_of(asked: str) -> str | None:
    if len(asked) > 256:
        raise BadInput("'after' is the id of the last item of the page before.", param="after")
    return asked or None


def page(kind: type[M], listing: Json) -> M:
    """A list answer from REST's envelope: `data` and `has_more`."""
    return from_answer(kind, {"data": listing["data"], "has_more": listing.get("has_more", False)})
