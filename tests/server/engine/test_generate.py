"""Answers in deltas on the real engine: iterated or poured they are the same, and one that breaks disturbs no other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from support.engine import MODEL_ID
from tunedock_api.errors import Internal, TuneDockError
from tunedock_server.engine.generate import Deltas
from tunedock_server.pool import EnginePool, GenerateDelta, GenerateRequest, Pinned, Sampling

BASE = Pinned(MODEL_ID)


def begin(engine: EnginePool, name: str, pinned: Pinned = BASE, tokens: int = 24, n: int = 1) -> Deltas:
    sampling = Sampling(max_tokens=tokens, temperature=0.0 if n == 1 else 1.0, ignore_eos=True, n=n)
    stream = engine.generate(GenerateRequest(name, text="Once upon a time", sampling=sampling), pinned)
    assert isinstance(stream, Deltas)
    return stream


def text_of(deltas: list[GenerateDelta], index: int = 0) -> str:
    return "".join(delta.text for delta in deltas if delta.index == index)


def keeping(deltas: list[GenerateDelta]) -> Callable[[GenerateDelta], None]:
    return deltas.append


async def until_idle(engine: EnginePool) -> None:
    """Until no sequence is left in the engine."""
    llm = engine._live().llm  # type: ignore[attr-defined]
    async with asyncio.timeout(5):
        while llm.get_num_unfinished_requests():  # noqa: ASYNC110 (vLLM has no event for it)
            await asyncio.sleep(0.02)


async def test_poured_is_what_iterating_gives(bf16: EnginePool) -> None:
    iterated = [delta async for delta in begin(bf16, "iterated")]
    poured: list[GenerateDelta] = []
    await begin(bf16, "poured").pour(keeping(poured))
    assert text_of(poured) == text_of(iterated)
    assert [len(delta.token_ids) for delta in poured] == [1] * 24
    assert [delta.completion_tokens for delta in poured] == list(range(1, 25))
    assert poured[-1].finish_reason == iterated[-1].finish_reason == "length"


async def test_iterating_can_go_over_into_pouring(bf16: EnginePool) -> None:
    stream, deltas = begin(bf16, "begun"), []
    deltas.append(await anext(stream))
    await stream.pour(keeping(deltas))
    assert sum(len(delta.token_ids) for delta in deltas) == 24


async def test_several_answers_are_poured_whole(bf16: EnginePool) -> None:
    deltas: list[GenerateDelta] = []
    await begin(bf16, "several", tokens=6, n=3).pour(keeping(deltas))
    counts = [sum(len(delta.token_ids) for delta in deltas if delta.index == index) for index in range(3)]
    assert counts == [6, 6, 6]


async def test_who_cannot_take_more_gets_the_tokens_of_meanwhile_together(bf16: EnginePool) -> None:
    deltas: list[GenerateDelta] = []
    taken_while_full: list[int] = []
    full = False

    async def rest() -> None:
        nonlocal full
        await asyncio.sleep(0.25)
        full = False

    def take(delta: GenerateDelta) -> Callable[[], Awaitable[None]] | None:
        nonlocal full
        taken_while_full.append(full)
        deltas.append(delta)
        full = len(deltas) == 3
        return rest if full else None

    await begin(bf16, "slow", tokens=40).pour(take)
    assert not any(taken_while_full)
    assert sum(len(delta.token_ids) for delta in deltas) == 40
    assert len(deltas[3].token_ids) > 1, "tokens of the pause came one by one"


async def test_a_taker_that_breaks_ends_its_answer_and_no_other(bf16: EnginePool, versions: tuple[Pinned, ...]) -> None:
    others: list[GenerateDelta] = []
    other = asyncio.create_task(begin(bf16, "other", tokens=60).pour(keeping(others)))
    seen: list[GenerateDelta] = []

    def breaks(delta: GenerateDelta) -> None:
        seen.append(delta)
        if len(seen) == 3:
            raise KeyError("a bug")

    with pytest.raises(Internal):
        await begin(bf16, "broken", versions[0], tokens=400).pour(breaks)
    await other
    assert sum(len(delta.token_ids) for delta in others) == 60
    assert len(seen) == 3
    await until_idle(bf16)
    await bf16.unload(str(versions[0].digest))  # refused while a request is running on it
    await bf16.load(versions[0])


@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_an_answer_that_nobody_wants_any_more_is_aborted(
    bf16: EnginePool, versions: tuple[Pinned, ...], how: str
) -> None:
    stream, deltas = begin(bf16, how, versions[0], tokens=400), []
    if how == "cancelled":
        some = asyncio.Event()

        def take(delta: GenerateDelta) -> None:
            deltas.append(delta)
            some.set()

        task = asyncio.create_task(stream.pour(take))
        await some.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        deltas.append(await anext(stream))
        await stream.aclose()
    count = len(deltas)
    await until_idle(bf16)
    assert len(deltas) == count < 400
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    await bf16.unload(str(versions[0].digest))
    await bf16.load(versions[0])


async def test_bad_requests_are_typed_either_way(bf16: EnginePool) -> None:
    asked = GenerateRequest("bad", text="Once", sampling=Sampling(max_tokens=4, temperature=-1.0))
    with pytest.raises(TuneDockError) as iterated:
        await anext(bf16.generate(asked, BASE))
    stream = bf16.generate(asked, BASE)
    assert isinstance(stream, Deltas)
    with pytest.raises(TuneDockError) as poured:
        await stream.pour(lambda _: None)
    assert (poured.value.code, poured.value.param) == (iterated.value.code, iterated.value.param)
