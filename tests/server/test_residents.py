"""Loading under pressure: one load per version, turns, bounded waits, pins, failures and restarts."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from support.bases import tiny_base, write_adapter
from support.fake_pool import FakePool
from tunedock_api.errors import Conflict, Overloaded, Unavailable
from tunedock_server.pool import Pinned
from tunedock_server.residency.residents import ResidencyLimits, Residents

FAST = ResidencyLimits(patience_s=0.02, wait_s=0.5, max_waiting=4)


async def rig(
    tmp_path: Path, count: int = 6, slots: int = 2, host: int = 4, limits: ResidencyLimits = FAST, here: bool = False
) -> tuple[FakePool, Residents, list[Pinned]]:
    base = tiny_base()
    pool = FakePool(base, slots, host)
    await pool.start()
    residents = Residents(pool, limits, here=lambda digest: here)
    residents.engine_started()
    versions = []
    for number in range(1, count + 1):
        digest = f"{number:064x}"
        path = write_adapter(tmp_path / digest, base, seed=number)
        versions.append(Pinned(f"support@{number}", digest, path, 4))
    return pool, residents, versions


async def test_many_requests_for_one_cold_version_load_it_once(tmp_path: Path) -> None:
    pool, residents, (first, *_) = await rig(tmp_path, limits=ResidencyLimits(max_waiting=100))
    pool.behaviour.load_s = 0.02
    leaves = await asyncio.gather(*(residents.use(first) for _ in range(20)))
    assert pool.calls["load"] == 1
    for leave in leaves:
        leave()


async def test_different_cold_versions_are_loaded_at_the_same_time(tmp_path: Path) -> None:
    pool, residents, versions = await rig(tmp_path, count=6, slots=6, host=6)
    pool.behaviour.load_s = 0.05
    leaves = await asyncio.gather(*(residents.use(version) for version in versions))
    assert pool.most_staging == 6
    for leave in leaves:
        leave()


async def test_a_load_that_finds_only_newcomers_in_its_way_waits_for_them(tmp_path: Path) -> None:
    pool, residents, (first, second, third, *_) = await rig(tmp_path, slots=2, host=2)
    pool.behaviour.load_s = 0.05
    coming = [asyncio.create_task(residents.prefetch(version)) for version in (first, second)]
    await asyncio.sleep(0.01)
    (await residents.use(third))()
    assert all(task.done() and task.exception() is None for task in coming)
    held = await pool.residency()
    assert third.digest in held
    assert len(held) == 2
    assert residents.states().keys() == held.keys()


async def test_a_version_on_its_way_is_not_evicted(tmp_path: Path) -> None:
    pool, residents, (first, *_) = await rig(tmp_path)
    pool.behaviour.load_s = 0.05
    coming = asyncio.create_task(residents.prefetch(first))
    await asyncio.sleep(0.01)
    assert not await residents.evict(str(first.digest))
    await coming
    assert await residents.evict(str(first.digest))


async def test_a_version_whose_place_is_still_being_cleared_is_not_evicted(tmp_path: Path) -> None:
    pool, residents, (first, second, third, fourth, *_) = await rig(tmp_path, slots=2, host=2)
    await residents.prefetch(first)
    await residents.prefetch(second)
    pool.behaviour.unloaded = asyncio.Event()
    coming = [asyncio.create_task(residents.prefetch(version)) for version in (third, fourth)]
    while third.digest not in await pool.residency():  # noqa: ASYNC110 (of the pool's own doing)
        await asyncio.sleep(0)
    assert not await residents.evict(str(third.digest))
    assert [task.done() for task in coming] == [False, False]
    pool.behaviour.unloaded.set()
    await asyncio.gather(*coming)
    assert residents.states().keys() == {third.digest, fourth.digest} == (await pool.residency()).keys()


@pytest.mark.parametrize("here", [False, True], ids=["files are looked for", "files are here"])
async def test_host_memory_holds_at_most_its_limit_and_drops_the_least_recently_used(
    tmp_path: Path, here: bool
) -> None:
    pool, residents, versions = await rig(tmp_path, here=here)
    for version in versions:
        await residents.warm(version)
    held = await pool.residency()
    assert set(held) == {version.digest for version in versions[-4:]}
    assert residents.states().keys() == held.keys()


async def test_more_busy_adapters_than_slots_take_turns(tmp_path: Path) -> None:
    pool, residents, versions = await rig(tmp_path, limits=ResidencyLimits(patience_s=0.01, wait_s=5, max_waiting=99))

    async def request(version: Pinned) -> None:
        leave = await residents.use(version)
        try:
            async for _ in pool._words(version):
                await asyncio.sleep(0.001)
        finally:
            leave()

    await asyncio.gather(*(request(version) for version in versions for _ in range(10)))
    assert pool.most_distinct_busy <= 2
    assert residents.num_waiting() == 0


async def test_a_version_in_use_is_never_unloaded(tmp_path: Path) -> None:
    pool, residents, versions = await rig(tmp_path, host=2)
    leave = await residents.use(versions[0])
    for version in versions[1:]:
        await residents.warm(version)
    assert versions[0].digest in await pool.residency()
    assert not await residents.evict(str(versions[0].digest))
    leave()
    assert await residents.evict(str(versions[0].digest))
    assert versions[0].digest not in await pool.residency()


async def test_a_wait_without_a_turn_ends_with_a_typed_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    limits = ResidencyLimits(patience_s=0.01, wait_s=0.1, max_waiting=4)
    _, residents, versions = await rig(tmp_path, slots=1, limits=limits)
    leave = await residents.use(versions[0])
    with pytest.raises(Unavailable) as caught:
        await residents.use(versions[1])
    assert caught.value.code == "adapter_loading"
    assert caught.value.retry_after_s
    leave()
    await residents.warm(versions[1])
    await residents.warm(versions[0])


async def test_the_wait_for_a_seat_is_as_long_as_there_is_work(tmp_path: Path) -> None:
    """Unlike the wait for a slot: nothing is wrong with the version, the engine has much to do."""
    limits = ResidencyLimits(patience_s=0.01, wait_s=0.5, max_waiting=4, seats=1)  # the first load has as long
    pool, residents, versions = await rig(tmp_path, limits=limits)
    leave = await residents.use(versions[0])
    waiters = [asyncio.create_task(residents.use(waiting)) for waiting in (versions[0], Pinned(pool.facts.model_id))]
    await asyncio.sleep(0.7)
    assert not any(waiter.done() for waiter in waiters)
    assert residents.waiting() == [versions[0].digest], "the base model is not an adapter"
    leave()
    for _ in waiters:
        [seated, *rest], waiting = await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        assert not rest, "one seat"
        seated.result()()
        waiters = list(waiting)
    assert residents.num_waiting() == 0


async def test_a_full_queue_for_one_adapter_answers_at_once(tmp_path: Path) -> None:
    _, residents, versions = await rig(tmp_path, slots=1)
    leave = await residents.use(versions[0])
    waiters = [asyncio.create_task(residents.use(versions[1])) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await residents.use(versions[1])
    assert caught.value.code == "adapter_queue_full"
    leave()
    for done in await asyncio.gather(*waiters):
        done()


async def test_a_cancelled_waiter_gives_its_place_up(tmp_path: Path) -> None:
    _, residents, versions = await rig(tmp_path, slots=1)
    leave = await residents.use(versions[0])
    waiter = asyncio.create_task(residents.use(versions[1]))
    await asyncio.sleep(0.05)
    waiter.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiter
    again = await asyncio.wait_for(residents.use(versions[0]), 0.2)
    assert residents.num_waiting() == 0
    again()
    leave()


async def test_a_failed_load_fails_every_waiter_and_is_tried_again_next_time(tmp_path: Path) -> None:
    pool, residents, (first, *_) = await rig(tmp_path)
    pool.behaviour.load_error = Unavailable("files are gone", "adapter_unavailable")
    results = await asyncio.gather(*(residents.use(first) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)
    assert residents.failed[str(first.digest)] == "files are gone"
    pool.behaviour.load_error = None
    await residents.warm(first)
    assert residents.failed == {}


async def test_pins_stay_in_their_slot_and_one_slot_stays_free(tmp_path: Path) -> None:
    pool, residents, versions = await rig(tmp_path)
    await residents.pin(versions[0])
    with pytest.raises(Conflict, match="1 of 2 slots"):
        await residents.pin(versions[1])
    for version in versions[1:]:
        await residents.warm(version)
    assert (await pool.residency())[str(versions[0].digest)] == "pinned"
    assert residents.states()[str(versions[0].digest)] == "pinned"
    await residents.unpin(str(versions[0].digest))
    await residents.pin(versions[1])


async def test_after_an_engine_restart_pins_and_residents_come_back(tmp_path: Path) -> None:
    pool, residents, versions = await rig(tmp_path)
    await residents.pin(versions[0])
    await residents.warm(versions[1])
    remembered = residents.last_known()
    pool.die()
    await pool.start()
    residents.engine_started()
    await residents.restore([versions[0]], remembered)
    assert await pool.residency() == {versions[0].digest: "pinned", versions[1].digest: "host"}


async def test_a_version_is_prepared_in_a_slot_only_when_nobody_has_to_yield(tmp_path: Path) -> None:
    pool, residents, versions = await rig(tmp_path, slots=1)
    leave = await residents.use(versions[0])
    await residents.prepare(versions[1])
    assert (await pool.residency())[str(versions[1].digest)] == "host"
    leave()
    await residents.prepare(versions[2])
    assert (await pool.residency())[str(versions[2].digest)] == "slot"
