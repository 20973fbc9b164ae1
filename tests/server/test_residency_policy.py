"""The turns of slots and the eviction from host memory, by simulation."""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st
from tunedock_server.residency.policy import BASE, SlotQueue, Ticket, victims

MANY = 10**9


class Simulation:
    """Requests arrive at given times and run for given durations; nothing else happens."""

    def __init__(self, slots: int, patience_s: float, pinned: set[str] | None = None, seats: int = MANY) -> None:
        self.queue = SlotQueue(slots, patience_s, seats, pinned or set())
        self.durations: dict[int, float] = {}
        self.waits: dict[str, list[float]] = defaultdict(list)
        self.events: list[tuple[float, int, str, str, float]] = []
        self.count = 0

    def at(self, when: float, digest: str, duration: float) -> None:
        self._push(when, "arrive", digest, duration)

    def _push(self, when: float, kind: str, digest: str = "", duration: float = 0.0) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, self.count, kind, digest, duration))

    def run(self) -> None:
        while self.events:
            now, _, kind, digest, duration = heapq.heappop(self.events)
            if kind == "arrive":
                ticket, granted = self.queue.arrive(digest, now)
                self.durations[ticket.number] = duration
            elif kind == "finish":
                granted = self.queue.finish(digest, now)
            else:
                granted = self.queue.grant(now)
            self._start(granted, now)
            check = self.queue.next_check(now)
            if check is not None:
                self._push(check, "check")
            assert len(self.queue.active) <= self.queue.slots
            assert self.queue.in_flight <= self.queue.seats

    def _start(self, granted: list[Ticket], now: float) -> None:
        for ticket in granted:
            self.waits[ticket.digest].append(now - ticket.arrived)
            self._push(now + self.durations[ticket.number], "finish", ticket.digest)


def test_requests_of_seated_adapters_never_wait() -> None:
    simulation = Simulation(slots=2, patience_s=1.0)
    for step in range(100):
        simulation.at(step * 0.01, "a", 0.5)
        simulation.at(step * 0.01, "b", 0.5)
    simulation.run()
    assert max(simulation.waits["a"] + simulation.waits["b"]) == 0.0


def test_an_idle_adapter_gives_its_slot_to_the_next_one_at_once() -> None:
    simulation = Simulation(slots=1, patience_s=10.0)
    simulation.at(0.0, "a", 0.1)
    simulation.at(0.2, "b", 0.1)
    simulation.run()
    assert simulation.waits["b"] == [0.0]


def test_a_flood_on_hot_adapters_cannot_starve_a_cold_one() -> None:
    simulation = Simulation(slots=2, patience_s=1.0)
    for step in range(3000):
        simulation.at(step * 0.01, "hot-1", 0.4)
        simulation.at(step * 0.01, "hot-2", 0.4)
    for step in range(10):
        simulation.at(1.5 + step * 2.7, "cold", 0.2)
    simulation.run()
    assert len(simulation.waits["cold"]) == 10
    assert max(simulation.waits["cold"]) <= 1.0 + 0.4 + 1e-6, "patience plus the longest running request"


def test_a_flood_on_one_adapter_makes_the_others_wait_for_one_seat_at_most() -> None:
    simulation = Simulation(slots=2, patience_s=1.0, seats=8)
    for _ in range(500):
        simulation.at(0.0, "hot", 0.5)
    for step in range(20):
        simulation.at(0.1 + step * 0.7, "cold", 0.2)
        simulation.at(0.1 + step * 0.7, BASE, 0.2)
    simulation.run()
    assert len(simulation.waits["hot"]) == 500
    assert max(simulation.waits["hot"]) > 20, "it is a flood"
    assert max(simulation.waits["cold"] + simulation.waits[BASE]) <= 0.5 + 1e-6, "the longest running request"


def test_a_flood_on_the_base_model_does_not_starve_adapters() -> None:
    simulation = Simulation(slots=1, patience_s=1.0, seats=4)
    for _ in range(200):
        simulation.at(0.0, BASE, 0.5)
    for step in range(10):
        simulation.at(0.1 + step, f"a{step % 2}", 0.2)
    simulation.run()
    assert max(simulation.waits["a0"] + simulation.waits["a1"]) <= 0.5 + 1e-6


def test_seats_are_shared_evenly_between_those_who_want_more() -> None:
    queue = SlotQueue(3, 1.0, 9)
    for _ in range(20):
        queue.arrive("a", 0.0)
    for _ in range(20):
        queue.arrive("b", 0.0)
    for _ in range(9):
        queue.finish("a", 1.0)
    assert (queue.active["a"].in_flight, queue.active["b"].in_flight) in ((4, 5), (5, 4))
    assert queue.in_flight == 9


def test_the_adapter_that_yielded_gets_its_turn_back() -> None:
    simulation = Simulation(slots=1, patience_s=0.5)
    for step in range(400):
        simulation.at(step * 0.01, "a", 0.05)
        simulation.at(step * 0.01, "b", 0.05)
    simulation.run()
    assert len(simulation.waits["a"]) == len(simulation.waits["b"]) == 400
    assert max(simulation.waits["a"] + simulation.waits["b"]) < 1.5


def test_a_pinned_adapter_is_never_asked_to_yield() -> None:
    simulation = Simulation(slots=2, patience_s=0.5, pinned={"vip"})
    for step in range(1000):
        simulation.at(step * 0.01, "vip", 0.3)
    for step in range(100):
        simulation.at(step * 0.05, f"other-{step % 5}", 0.2)
    simulation.run()
    assert max(simulation.waits["vip"]) == 0.0
    assert sum(len(simulation.waits[f"other-{i}"]) for i in range(5)) == 100


def test_a_yield_is_taken_back_when_the_waiter_gives_up() -> None:
    queue = SlotQueue(1, 1.0, MANY)
    queue.arrive("hot", 0.0)
    ticket, _ = queue.arrive("cold", 0.5)
    assert queue.grant(2.0) == []
    assert queue.active["hot"].yielding
    queue.leave(ticket, 2.1)
    _, granted = queue.arrive("hot", 2.2)
    assert [t.digest for t in granted] == ["hot"]


def test_zipf_traffic_on_ten_times_more_adapters_than_slots_serves_everybody() -> None:
    rng = random.Random(7)
    simulation = Simulation(slots=4, patience_s=0.25)
    sent: Counter[str] = Counter()
    for _ in range(1500):
        digest = f"a{min(39, int(rng.paretovariate(1.0)) - 1)}"
        sent[digest] += 1
        simulation.at(rng.uniform(0, 25), digest, rng.uniform(0.02, 0.3))
    simulation.run()
    assert {digest: len(waits) for digest, waits in simulation.waits.items()} == dict(sent)
    assert max(max(waits) for waits in simulation.waits.values()) < 15


@settings(max_examples=200, deadline=None)
@given(
    slots=st.integers(1, 4),
    seats=st.integers(1, 8),
    arrivals=st.lists(st.tuples(st.floats(0, 5), st.sampled_from([BASE, *"abcdef"]), st.floats(0.01, 2)), max_size=60),
)
def test_every_request_is_granted_exactly_once(
    slots: int, seats: int, arrivals: list[tuple[float, str, float]]
) -> None:
    simulation = Simulation(slots=slots, patience_s=0.5, pinned=set("a") if slots > 1 else set(), seats=seats)
    for when, digest, duration in arrivals:
        simulation.at(when, digest, duration)
    simulation.run()
    assert Counter({d: len(w) for d, w in simulation.waits.items()}) == Counter(d for _, d, _ in arrivals)
    assert not simulation.queue.waiting
    assert simulation.queue.in_flight == 0
    assert all(slot.in_flight == 0 for slot in simulation.queue.active.values())


def test_victims_are_the_least_recently_used_that_nothing_holds() -> None:
    resident = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    assert victims(resident, 4, keep={"a"}, incoming=["e"]) == ["b"]
    assert victims(resident, 3, keep={"a", "b"}, incoming=["e"]) == ["c", "d"]
    assert victims(resident, 4, keep=set(), incoming=["a"]) == []
    assert victims(resident, 4, keep=set(resident), incoming=["e"]) == []


def test_what_aliases_point_to_leaves_host_memory_last() -> None:
    resident = {"alias": 1.0, "old": 2.0, "new": 3.0}
    assert victims(resident, 3, keep=set(), incoming=["e"], preferred={"alias"}) == ["old"]
    assert victims(resident, 1, keep=set(), incoming=["e"], preferred={"alias"}) == ["old", "new", "alias"]
