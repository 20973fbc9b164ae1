"""Which adapter may use a slot now, and which one leaves host memory. Pure: no engine, no clock, no tasks.

vLLM's own scheduler skips a waiting request whose adapter does not fit, without ageing: a flood on one hot adapter
starves a cold one (vllm#16876, sglang#15129). So at most `slots` distinct adapters are let into the engine at once, and
a slot changes hands in turns: when somebody has waited longer than `patience_s`, the adapter that has held a slot for
longest takes no new requests, runs empty, and hands over to the oldest waiter. It then queues behind the others.

What fits is served first come, first served by vLLM: behind a flood the others would wait for all of it. So no more
requests are let in than the engine runs at once (`seats`), and a free seat goes to whoever has the fewest.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

BASE = ""  # in place of a digest: the base model, which needs a seat but no slot


@dataclass(slots=True)
class Slot:
    """One adapter that may run now. `since`: when it took the slot; `yielding`: takes no new requests."""

    since: float
    in_flight: int = 0
    last_use: float = 0.0
    yielding: bool = False


@dataclass(frozen=True, slots=True)
class Ticket:
    """One waiting request."""

    number: int
    digest: str
    arrived: float


@dataclass
class SlotQueue:
    """The turns. Times are seconds of any steady clock that the caller passes in.

    Invariants: `len(active) <= slots`; `in_flight <= seats`; a ticket is granted at most once and in order of arrival
    for its digest.
    """

    slots: int
    patience_s: float
    seats: int
    pinned: set[str] = field(default_factory=set)
    active: dict[str, Slot] = field(default_factory=dict)
    waiting: OrderedDict[str, deque[Ticket]] = field(default_factory=OrderedDict)
    base: Slot = field(default_factory=lambda: Slot(since=0.0))
    in_flight: int = 0
    _numbers: int = 0

    def arrive(self, digest: str, now: float) -> tuple[Ticket, list[Ticket]]:
        """Queues a request. Returns its ticket and every ticket that may run now (perhaps this one)."""
        self._numbers += 1
        ticket = Ticket(self._numbers, digest, now)
        self.waiting.setdefault(digest, deque()).append(ticket)
        return ticket, self.grant(now)

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Takes back a ticket that was not granted (the caller went away or waited too long)."""
        queue = self.waiting.get(ticket.digest)
        if queue is not None and ticket in queue:
            queue.remove(ticket)
            if not queue:
                del self.waiting[ticket.digest]
        return self.grant(now)

    def finish(self, digest: str, now: float) -> list[Ticket]:
        """One granted request of `digest` is over."""
        slot = self._slot(digest)
        slot.in_flight -= 1
        self.in_flight -= 1
        slot.last_use = now
        return self.grant(now)

    def grant(self, now: float) -> list[Ticket]:
        """Call on every change and whenever `next_check` comes: who may run now."""
        self._ask_to_yield(now)
        seated = [digest for digest in self._by_age() if self._seat(digest, now)]
        granted: list[Ticket] = []
        while seated and self.in_flight < self.seats:
            digest = min(seated, key=lambda digest: self._slot(digest).in_flight)  # of equals, who has waited longest
            granted.append(self._admit(digest, now))
            if digest not in self.waiting:
                seated.remove(digest)
        return granted

    def next_check(self, now: float) -> float | None:
        """The next moment after `now` at which `grant` may decide otherwise without any other change."""
        if not self.waiting:
            return None
        moments = [queue[0].arrived + self.patience_s for queue in self.waiting.values()]
        moments += [slot.since + self.patience_s for slot in self.active.values() if not slot.yielding]
        return min((moment for moment in moments if moment > now), default=None)

    def has_room(self, digest: str) -> bool:
        """Whether a request for `digest` would run at once."""
        if self.in_flight >= self.seats:
            return False
        slot = self.active.get(digest)
        if slot is not None:
            return not slot.yielding
        return len(self.active) < self.slots or any(self._may_leave(other, s) for other, s in self.active.items())

    def lacks_slot(self, digest: str) -> bool:
        """Whether its requests wait for a slot; otherwise they wait for a seat only, or for nothing."""
        slot = self.base if digest == BASE else self.active.get(digest)
        return slot is None or slot.yielding

    def num_waiting(self, digest: str) -> int:
        return len(self.waiting.get(digest, ()))

    def drop(self, digest: str) -> None:
        """Forgets an idle adapter that left the engine."""
        slot = self.active.get(digest)
        if slot is not None and slot.in_flight == 0:
            del self.active[digest]

    def _slot(self, digest: str) -> Slot:
        return self.base if digest == BASE else self.active[digest]

    def _by_age(self) -> list[str]:
        return sorted(self.waiting, key=lambda digest: self.waiting[digest][0].number)

    def _seat(self, digest: str, now: float) -> bool:
        """Whether `digest` holds a slot that takes requests, after giving it a free or idle one if need be."""
        slot = self.base if digest == BASE else self.active.get(digest)
        if slot is not None:
            return not slot.yielding
        if len(self.active) >= self.slots and not self._evict_idle():
            return False
        self.active[digest] = Slot(since=now, last_use=now)
        return True

    def _evict_idle(self) -> bool:
        idle = [(slot.last_use, digest) for digest, slot in self.active.items() if self._may_leave(digest, slot)]
        if not idle:
            return False
        del self.active[min(idle)[1]]
        return True

    def _may_leave(self, digest: str, slot: Slot) -> bool:
        return slot.in_flight == 0 and digest not in self.pinned and (slot.yielding or digest not in self.waiting)

    def _admit(self, digest: str, now: float) -> Ticket:
        queue, slot = self.waiting[digest], self._slot(digest)
        ticket = queue.popleft()
        if not queue:
            del self.waiting[digest]
        slot.in_flight += 1
        self.in_flight += 1
        slot.last_use = now
        return ticket

    def _ask_to_yield(self, now: float) -> None:
        """One busy slot yields for each adapter that has waited too long; all yields end when nobody needs them."""
        outside = [digest for digest in self.waiting if digest != BASE and digest not in self.active]
        starving = [digest for digest in outside if self._waited(digest, now) >= self.patience_s]
        yielding = [slot for slot in self.active.values() if slot.yielding]
        if not outside:
            for slot in yielding:
                slot.yielding = False
            return
        busy = sorted(
            (slot.since, digest)
            for digest, slot in self.active.items()
            if not slot.yielding
            and digest not in self.pinned
            and slot.in_flight
            and now - slot.since >= self.patience_s
        )
        for _, digest in busy[: max(0, len(starving) - len(yielding))]:
            self.active[digest].yielding = True

    def _waited(self, digest: str, now: float) -> float:
        return now - self.waiting[digest][0].arrived


def victims(
    resident: Mapping[str, float],
    capacity: int,
    keep: Collection[str],
    incoming: Iterable[str] = (),
    preferred: Collection[str] = (),
) -> list[str]:
    """Who leaves host memory so that `incoming` fits: the least recently used that nothing holds.

    `resident` maps digest -> last use; `keep` are pinned or in flight; `preferred` (what aliases point to) go last.
    Fewer victims than needed come back when everything else is held: the caller then has to wait.
    """
    needed = len(set(resident) | set(incoming)) - capacity
    if needed <= 0:
        return []
    held = set(keep) | set(incoming)
    free = sorted((digest in preferred, used, digest) for digest, used in resident.items() if digest not in held)
    return [digest for _, _, digest in free[:needed]]
