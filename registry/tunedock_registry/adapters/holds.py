"""What other live servers still use, so that no collector takes its files away.

A retired version may answer for as long as a request may take, on every server, and the grace time is shorter than
that. So a server that still uses a digest that is offered no more writes it down and counts its beat up. Collectors
leave such files alone while the beat moves; a server that died stops holding after a lease, judged as for jobs
(`leases.py`): without comparing clocks. Usually nothing retired is in use, and then nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from threading import Lock

from sqlalchemy import and_, delete, select
from sqlalchemy.orm import Session

from ..db import Database
from ..leases import LeaseWatch
from ..tables.adapters import HoldRow


@dataclass
class Holds:
    """The holds of one process, `holder`, and its view of all others."""

    db: Database
    holder: str
    _beat: int = 0
    _written: bool = False
    _watch: LeaseWatch = field(default_factory=LeaseWatch)
    _lock: Lock = field(default_factory=Lock)

    def say(self, digests: Set[str]) -> None:
        """Replaces what this process holds. Nothing is written when there is nothing and was nothing."""
        with self._lock:
            if not digests and not self._written:
                return
            self._beat += 1
            with self.db.write() as session:
                session.execute(delete(HoldRow).where(HoldRow.holder == self.holder))
                session.add_all(HoldRow(holder=self.holder, digest=digest, beat=self._beat) for digest in digests)
            self._written = bool(digests)

    def of_others(self, now: float) -> set[str]:
        """Digests that other live servers hold; rows of dead ones are removed. `now` is monotonic."""
        with self._lock:
            rows = self._others()
            dead = self._watch.expired(((holder, (0, beat)) for holder, _, beat in rows), now)
            if dead:
                with self.db.write() as session:
                    _forget(session, ((holder, beat) for holder, (_, beat) in dead.items()))
        return {digest for holder, digest, _ in rows if holder not in dead}

    def _others(self) -> list[tuple[str, str, int]]:
        query = select(HoldRow.holder, HoldRow.digest, HoldRow.beat).where(HoldRow.holder != self.holder)
        with self.db.read() as session:
            return list(session.execute(query).tuples())


def _forget(session: Session, dead: Iterable[tuple[str, int]]) -> None:
    """Only as they were seen: whoever beats again meanwhile keeps its rows."""
    for holder, beat in dead:
        session.execute(delete(HoldRow).where(and_(HoldRow.holder == holder, HoldRow.beat == beat)))
