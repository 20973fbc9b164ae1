"""Gets a version into the engine for a request and keeps it there while the request runs.

`SlotQueue` decides whose turn it is; this class performs it: one load per version however many requests wait for it, and a
bounded wait for every caller. Loads of several versions go to the engine together: it takes them up between two steps, and one
after the other they would cost a step each. vLLM drops the least recently used adapter by itself when host memory is full, also
one that a running batch uses, so room is always made here first.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from tunedock_api.errors import Conflict, Overloaded, TuneDockError, Unavailable

from ..pool import EnginePool, Pinned, Residency
from .policy import BASE, SlotQueue, Ticket, victims

RETRY_AFTER_S = 2.0
FETCHES = 4  # at once: each takes a thread that others need too


@dataclass(frozen=True)
class ResidencyLimits:
    """`patience_s`, `seats`: see SlotQueue. `wait_s`: longest wait for a slot, and then for a load. `max_waiting`:
    requests per adapter, whatever they wait for."""

    patience_s: float = 1.0
    wait_s: float = 20.0
    max_waiting: int = 256
    seats: int = 64


@dataclass
class LoadStats:
    """Totals since start, for /metrics."""

    loads: int = 0
    load_seconds: float = 0.0
    evictions: int = 0
    failures: int = 0


class Residents:
    """One engine's adapters. Runs on the event loop only."""

    def __init__(
        self,
        pool: EnginePool,
        limits: ResidencyLimits,
        fetch: Callable[[str], object] = lambda digest: None,
        clock: Callable[[], float] = time.monotonic,
        here: Callable[[str], bool] = lambda digest: False,
    ) -> None:
        """`fetch` makes sure that a digest's files are on this machine; it runs in a thread and raises Unavailable. `here`
        says in microseconds that they are."""
        self._pool = pool
        self._fetch = fetch
        self._here = here
        self._limits = limits
        self._clock = clock
        self._queue = SlotQueue(1, limits.patience_s, limits.seats)
        self._granted: dict[int, asyncio.Future[None]] = {}
        self._host: dict[str, float] = {}  # digest -> last use, of what the engine holds
        self._ready: set[str] = set()  # loaded into the seat that it holds now
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._coming: Counter[str] = Counter()  # on their way into the engine; each has its place already
        self._arrived = asyncio.Event()  # replaced by the next when it is set
        self._fetches = asyncio.Semaphore(FETCHES)
        self._known: dict[str, Pinned] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.preferred: frozenset[str] = frozenset()  # kept in host memory longer than others
        self.failed: dict[str, str] = {}  # digest -> why the last load failed
        self.stats = LoadStats()

    def engine_started(self) -> None:
        """The engine is new and empty: forget what the old one held, but not who is waiting."""
        facts = self._pool.facts
        self._queue.slots = facts.max_loras
        self._queue.pinned.clear()
        self._host.clear()
        self._ready.clear()

    # --- requests

    async def use(self, pinned: Pinned) -> Callable[[], None]:
        """Waits until `pinned` may run and is loaded. Returns what to call, once, when the request is over.

        Raises Overloaded (too many wait already), Unavailable (the wait was too long, or the version cannot be loaded).
        The base model needs no slot and no load, only its turn.
        """
        digest = pinned.digest or BASE
        if self._queue.num_waiting(digest) >= self._limits.max_waiting:
            raise Overloaded(
                f"{self._limits.max_waiting} requests already wait for {pinned.public}: try again later.",
                "adapter_queue_full",
                retry_after_s=RETRY_AFTER_S,
            )
        await self._seat(pinned, digest)
        if digest != BASE:
            await self._bring(pinned, digest)
        return lambda: self._leave_seat(digest)

    async def _bring(self, pinned: Pinned, digest: str) -> None:
        """Loads what has its seat. Gives the seat back when that fails."""
        self._known[digest] = pinned
        try:
            await self._loaded(pinned, self._clock() + self._limits.wait_s)
        except BaseException:
            self._leave_seat(digest)
            raise
        self._host[digest] = self._clock()

    async def _seat(self, pinned: Pinned, digest: str) -> None:
        ticket, granted = self._queue.arrive(digest, self._clock())
        turn = asyncio.get_running_loop().create_future()
        self._granted[ticket.number] = turn
        self._apply(granted)
        try:
            await self._turn(pinned, digest, turn)
        except BaseException:
            self._give_up(ticket, turn)
            raise

    async def _turn(self, pinned: Pinned, digest: str, turn: asyncio.Future[None]) -> None:
        """The wait for a slot is bounded. The wait for the engine's seats is not: it lasts as long as there is work."""
        while not (await asyncio.wait({turn}, timeout=self._limits.wait_s))[0]:
            if self._queue.lacks_slot(digest):
                raise self._too_slow(pinned)

    def _give_up(self, ticket: Ticket, turn: asyncio.Future[None]) -> None:
        self._granted.pop(ticket.number, None)
        if turn.done() and not turn.cancelled():
            self._leave_seat(ticket.digest)
        else:
            self._apply(self._queue.leave(ticket, self._clock()))

    def _leave_seat(self, digest: str) -> None:
        if digest in self._host:
            self._host[digest] = self._clock()
        self._apply(self._queue.finish(digest, self._clock()))

    def _apply(self, granted: Sequence[Ticket]) -> None:
        """Wakes whose turn it is and sets the timer for the next change that no event will announce."""
        awake = list(granted)
        for ticket in awake:
            turn = self._granted.pop(ticket.number, None)
            if turn is not None and not turn.done():
                turn.set_result(None)
            else:  # its caller went away in this very moment
                awake += self._queue.finish(ticket.digest, self._clock())
        self._ready &= self._queue.active.keys()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        check = self._queue.next_check(self._clock())
        if check is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.001, check - self._clock()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._apply(self._queue.grant(self._clock()))

    # --- loads

    async def _loaded(self, pinned: Pinned, deadline: float) -> None:
        digest = _digest(pinned)
        while digest not in self._ready:
            task = self._loading.get(digest) or self._start_load(pinned)
            try:
                async with asyncio.timeout(max(0.0, deadline - self._clock())):
                    await asyncio.shield(task)
            except TimeoutError:
                raise self._too_slow(pinned) from None

    def _start_load(self, pinned: Pinned) -> asyncio.Task[None]:
        digest = _digest(pinned)
        task = asyncio.create_task(self._load(pinned), name=f"load {pinned.public}")
        self._loading[digest] = task
        task.add_done_callback(lambda done: self._load_done(digest, done))
        return task

    def _load_done(self, digest: str, task: asyncio.Task[None]) -> None:
        self._loading.pop(digest, None)
        if not task.cancelled():
            task.exception()  # marks it as seen: nobody may be waiting any more

    async def _load(self, pinned: Pinned) -> None:
        digest = _digest(pinned)
        await self._perform(pinned, self._pool.load)
        if digest in self._queue.active:
            self._ready.add(digest)

    async def _perform(self, pinned: Pinned, action: Callable[[Pinned], Awaitable[None]]) -> None:
        digest = _digest(pinned)
        leaving = await self._room_for(digest)
        self._coming[digest] += 1
        try:
            await self._bring_in(pinned, digest, action, leaving)
        finally:
            self._coming -= Counter([digest])
            self._arrived.set()
            self._arrived = asyncio.Event()

    async def _bring_in(
        self,
        pinned: Pinned,
        digest: str,
        action: Callable[[Pinned], Awaitable[None]],
        leaving: Sequence[asyncio.Task[None]],
    ) -> None:
        # Evictions begin before the load does: an engine counts its places from then on.
        await asyncio.sleep(0)
        started = self._clock()
        try:
            if digest not in self._host and not self._here(digest):
                async with self._fetches:
                    await asyncio.to_thread(self._fetch, digest)
            await action(pinned)
        except TuneDockError as error:
            self.stats.failures += 1
            self.failed[digest] = error.message
            raise
        finally:
            await asyncio.gather(*leaving)
        self._host[digest] = self._clock()
        self.failed.pop(digest, None)
        self.stats.loads += 1
        self.stats.load_seconds += self._clock() - started

    async def _room_for(self, incoming: str) -> list[asyncio.Task[None]]:
        """Begins to unload what has to leave. The engine gets these calls before the one that brings `incoming`, which need
        not wait for their answers. Raises Overloaded when nothing can leave, and nothing arrives that could."""
        while True:
            busy = {digest for digest, slot in self._queue.active.items() if slot.in_flight}
            keep = busy | self._queue.pinned | self._coming.keys()
            held = {**dict.fromkeys(self._coming, self._clock()), **self._host}
            leaving = victims(held, self._pool.facts.max_cpu_loras, keep, [incoming], self.preferred)
            if len(held.keys() | {incoming}) - len(leaving) <= self._pool.facts.max_cpu_loras:
                return self._unload(leaving)
            if not self._coming:
                raise Overloaded(
                    "Host memory is full of adapters that are in use or pinned: try again later, unpin one, or raise "
                    "max_cpu_loras.",
                    "adapter_queue_full",
                    retry_after_s=RETRY_AFTER_S,
                )
            await self._arrived.wait()

    def _unload(self, leaving: Iterable[str]) -> list[asyncio.Task[None]]:
        tasks = []
        for digest in leaving:
            self.stats.evictions += 1
            self._forget(digest)
            tasks.append(asyncio.create_task(self._pool.unload(digest), name=f"unload {digest[:12]}"))
        return tasks

    def _forget(self, digest: str) -> None:
        self._host.pop(digest, None)
        self._ready.discard(digest)
        self._queue.drop(digest)

    # --- lifecycle

    async def prefetch(self, pinned: Pinned) -> None:
        """Brings a version into host memory, so that its first request only needs a slot."""
        digest = _digest(pinned)
        self._known[digest] = pinned
        if digest not in self._host:
            await self._perform(pinned, self._pool.stage)

    async def prepare(self, pinned: Pinned) -> None:
        """Into a slot when one can be had without waiting, else into host memory. Raises what a load raises."""
        if self._queue.has_room(_digest(pinned)):
            await self.warm(pinned)
        else:
            await self.prefetch(pinned)

    async def warm(self, pinned: Pinned) -> None:
        """As a request would: seat, load, leave. Raises what `use` raises."""
        (await self.use(pinned))()

    async def pin(self, pinned: Pinned) -> None:
        """Keeps a version in a slot. Raises Conflict when only one slot would be left for everybody else."""
        digest = _digest(pinned)
        most = self._pool.facts.max_loras - 1
        if digest not in self._queue.pinned and len(self._queue.pinned) >= most:
            raise Conflict(
                f"{most} of {most + 1} slots are pinned already, and one must stay free: unpin another version first.",
                "version_in_use",
            )
        leave = await self.use(pinned)
        try:
            await self._pool.pin(digest)
            self._queue.pinned.add(digest)
        finally:
            leave()

    async def unpin(self, digest: str) -> None:
        """The engine can only unpin by unloading (vLLM has no such call), so it happens when nobody uses the version."""
        self._queue.pinned.discard(digest)
        slot = self._queue.active.get(digest)
        if slot is None or slot.in_flight == 0:
            await self.evict(digest)

    async def evict(self, digest: str) -> bool:
        """Frees slot and host memory. False when a request is using it."""
        slot = self._queue.active.get(digest)
        if (slot is not None and slot.in_flight) or digest in self._loading or digest in self._coming:
            return False
        self._queue.pinned.discard(digest)
        self._forget(digest)
        self.failed.pop(digest, None)
        self._known.pop(digest, None)
        await self._pool.unload(digest)
        return True

    async def restore(self, pinned: Iterable[Pinned], resident: Iterable[Pinned]) -> None:
        """After a start: pins first, then what was or should be in host memory, as far as it fits. Best effort."""
        for version in pinned:
            await _quietly(self.pin(version))
        room = self._pool.facts.max_cpu_loras - len(self._host)
        for version in list(resident)[: max(0, room)]:
            await _quietly(self.prefetch(version))

    def last_known(self) -> list[Pinned]:
        """What was resident, most recently used first: what to bring back after the engine died."""
        ordered = sorted(self._host, key=lambda digest: -self._host[digest])
        return [self._known[digest] for digest in ordered if digest in self._known]

    def states(self) -> dict[str, Residency]:
        """digest -> where it is, from our own books; never waits for the engine."""
        states: dict[str, Residency] = {}
        for digest in self._host:
            in_slot = digest in self._queue.active
            states[digest] = "pinned" if digest in self._queue.pinned else "slot" if in_slot else "host"
        return states

    def waiting(self) -> list[str]:
        """Digests that requests wait for."""
        return [digest for digest in self._queue.waiting if digest != BASE]

    def num_waiting(self) -> int:
        return sum(len(tickets) for tickets in self._queue.waiting.values())

    def _too_slow(self, pinned: Pinned) -> Unavailable:
        return Unavailable(
            f"{pinned.public} did not get its turn in the engine within {self._limits.wait_s:g} s: try again.",
            "adapter_loading",
            retry_after_s=RETRY_AFTER_S,
        )


async def _quietly(work: Awaitable[None]) -> None:
    try:
        await work
    except TuneDockError:
        return  # recorded in `failed`; the next request for that version gets the error


def _digest(pinned: Pinned) -> str:
    if pinned.digest is None:
        raise ValueError("the base model needs no residency")
    return pinned.digest
