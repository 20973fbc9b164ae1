from __future__ import annotations

import threading
import time as real_time
from collections.abc import Callable

import pytest
from sqlalchemy import text
from support.registry import queued_job
from tunedock_registry.registry import Registry


def after(delay_s: float, action: Callable[[], object]) -> threading.Thread:
    def run() -> None:
        real_time.sleep(delay_s)
        action()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_change_by_another_process_is_heard_within_half_a_second(
    registry: Registry, reopen: Callable[[], Registry]
) -> None:
    seen = registry.change_counter()
    registry.wait_for_change(seen, 0.01)
    other = reopen()
    changed_at: list[float] = []

    def change() -> None:
        queued_job(other)
        changed_at.append(real_time.monotonic())

    thread = after(0.2, change)
    assert registry.wait_for_change(seen, 10) > seen
    heard_at = real_time.monotonic()
    thread.join()
    assert heard_at - changed_at[0] < 0.5


def test_without_a_change_the_wait_ends_in_time(registry: Registry) -> None:
    seen = registry.change_counter()
    started = real_time.monotonic()
    assert registry.wait_for_change(seen, 0.3) == seen
    assert 0.3 <= real_time.monotonic() - started < 1.5


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_the_bell_works_again_after_its_connection_was_lost(registry: Registry) -> None:
    seen = registry.change_counter()
    registry.wait_for_change(seen, 0.05)
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"

    def lose_and_change() -> None:
        with registry.db.read() as session:
            assert session.execute(text(kill)).all()
        queued_job(registry)

    thread = after(0.1, lose_and_change)
    assert registry.wait_for_change(seen, 10) > seen
    thread.join()
