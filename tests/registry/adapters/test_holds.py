"""A collector leaves alone what another live server still uses, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import func, select
from support.registry import FakeTime
from support.shelf import Shelf
from tunedock_registry.adapters.folders import is_intact
from tunedock_registry.leases import HEARTBEAT_S, LEASE_S
from tunedock_registry.records import VersionRecord
from tunedock_registry.registry import Registry
from tunedock_registry.tables.adapters import HoldRow

GRACE_S = 60


@dataclass
class Pair:
    """Two servers on one registry. `version` was retired, and the grace time is over."""

    here: Registry
    there: Registry
    version: VersionRecord
    time: FakeTime

    def is_collected(self) -> bool:
        """By the server `here`, which does not use it."""
        self.here.adapters.collect(grace_s=GRACE_S)
        gone = self.here.adapters.by_id(self.version.id).state == "retired"
        assert gone != is_intact(self.here.home.adapter_dir(self.version.digest), self.version.digest)
        return gone

    def wait(self, seconds: float, *, beating: bool) -> None:
        """Both go on with what they do all the time; `there` only says what it holds when `beating`."""
        for _ in range(int(seconds / HEARTBEAT_S)):
            self.time.advance(HEARTBEAT_S)
            if beating:
                self.there.adapters.hold({self.version.digest})
            self.here.adapters.collect(grace_s=1e9)


@pytest.fixture
def pair(reopen: Callable[[], Registry], tmp_path: Path, time: FakeTime) -> Pair:
    here, there = reopen(), reopen()
    version = Shelf.around(here, tmp_path).ready()
    here.adapters.retire(version.id)
    there.adapters.hold({version.digest})
    time.advance(GRACE_S)
    return Pair(here, there, version, time)


def test_files_stay_for_as_long_as_another_server_says_so(pair: Pair) -> None:
    pair.wait(20 * GRACE_S, beating=True)
    assert not pair.is_collected()
    pair.there.adapters.hold(set())
    assert pair.is_collected()


def test_a_server_that_died_holds_nothing_after_a_lease(pair: Pair) -> None:
    assert not pair.is_collected()
    pair.wait(LEASE_S - HEARTBEAT_S, beating=False)
    assert not pair.is_collected()
    pair.wait(2 * HEARTBEAT_S, beating=False)
    assert pair.is_collected()
    assert _num_holds(pair.here) == 0


def test_a_jump_of_the_wall_clock_ends_no_hold(pair: Pair) -> None:
    assert not pair.is_collected()
    pair.time.jump(1_000_000)
    assert not pair.is_collected()


def test_a_collector_that_has_just_started_waits_a_full_lease(
    pair: Pair, reopen: Callable[[], Registry], time: FakeTime
) -> None:
    time.advance(1_000)
    pair.here = reopen()
    assert not pair.is_collected()


def test_a_server_does_not_hold_back_itself(pair: Pair) -> None:
    pair.there.adapters.collect(grace_s=GRACE_S)
    assert pair.there.adapters.by_id(pair.version.id).state == "retired"


def test_nothing_is_written_while_nothing_retired_is_in_use(registry: Registry) -> None:
    with registry.db.write():  # a second writer would wait in vain
        registry.adapters.hold(set())
    assert _num_holds(registry) == 0


def _num_holds(registry: Registry) -> int:
    with registry.db.read() as session:
        return session.scalars(select(func.count()).select_from(HoldRow)).one()
