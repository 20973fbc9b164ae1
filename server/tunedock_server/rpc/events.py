"""OpenAI's server-sent events, read back: for answers whose shape only vLLM's serving classes know."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from tunedock_api.errors import TuneDockError

from ..leases import LeasedStream

Event = dict[str, Any]
_DATA = b"data: "


async def events(stream: LeasedStream[bytes] | None) -> AsyncGenerator[Event, None]:
    """Every event of `stream`, which is closed at the end. Raises the TuneDockError that an error event tells of."""
    if stream is None:
        return
    try:
        async for sent in stream:
            for block in sent.split(b"\n\n"):
                if block.startswith(_DATA + b"{"):
                    yield _event(block.removeprefix(_DATA))
    finally:
        await stream.aclose()


def _event(text: bytes) -> Event:
    event: Event = json.loads(text)
    if "error" in event:
        error = event["error"]
        raise TuneDockError(error["message"], error["code"] or "", error["param"])
    return event
