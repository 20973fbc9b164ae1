"""Uploads leave the loop to running streams; what is small, and what has the server for itself, is not delayed."""

from __future__ import annotations

import pytest
from starlette.types import Message
from support.pace import costs_at_most
from tunedock_server.http.routing import BESIDE_STREAMS_BYTES_PER_S, LARGE_BYTES, PIECE_BYTES, StrictRequest, paced


class Pauses:
    """Sleeps not, but remembers for how long it was asked to."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)


async def read(body: list[bytes], streaming: bool, pauses: Pauses) -> bytes:
    pieces = iter(body)

    async def receive() -> Message:
        return {"type": "http.request", "body": next(pieces)}

    slowly = paced(receive, lambda: streaming, pauses.sleep)
    return b"".join([(await slowly())["body"] for _ in body])


async def test_a_large_body_beside_streams_comes_at_the_chosen_pace() -> None:
    body, pauses = [bytes([number]) * 100_000 for number in range(20)], Pauses()
    assert await read(body, True, pauses) == b"".join(body)
    num_bytes = 2_000_000 - 2_000_000 % (6 * 100_000)  # pauses come once PIECE_BYTES are together
    assert sum(pauses.seconds) == pytest.approx(num_bytes / BESIDE_STREAMS_BYTES_PER_S)
    assert len(pauses.seconds) == 3


async def test_without_streams_nothing_is_delayed() -> None:
    pauses = Pauses()
    await read([b"a" * 100_000], False, pauses)
    assert pauses.seconds == []


async def test_a_question_is_not_delayed() -> None:
    pauses = Pauses()
    await read([b"a" * (LARGE_BYTES - 1)], True, pauses)
    assert pauses.seconds == []


async def test_the_end_of_a_connection_goes_through() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    pauses = Pauses()
    assert await paced(receive, lambda: True, pauses.sleep)() == {"type": "http.disconnect"}
    assert pauses.seconds == []


async def test_a_body_is_handled_in_few_pieces_and_stays_what_it_was() -> None:
    parts = [bytes([number]) * 60_000 for number in range(30)]
    messages = iter([{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts])

    async def receive() -> Message:
        return next(messages)

    pieces = [piece async for piece in StrictRequest({"type": "http"}, receive).stream()]
    assert b"".join(pieces) == b"".join(parts)
    assert [len(piece) >= PIECE_BYTES for piece in pieces] == [True, True, True, False]


async def test_a_body_of_single_bytes_costs_as_much_as_it_has_bytes() -> None:
    """Adding up what is held anew for every byte would take a minute of everybody's time."""
    left = 200_000

    async def receive() -> Message:
        nonlocal left
        left -= 1
        return {"type": "http.request", "body": b"a", "more_body": left > 0}

    with costs_at_most(25):
        pieces = [piece async for piece in StrictRequest({"type": "http"}, receive).stream()]
    assert b"".join(pieces) == b"a" * 200_000
