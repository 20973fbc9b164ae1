"""When an engine counts as hanging."""

from __future__ import annotations

from tunedock_server.engine.progress import Progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_waiting_work_without_a_step_is_a_hang_and_a_step_ends_it() -> None:
    clock = Clock()
    progress = Progress(60, clock)
    clock.now += 59
    assert not progress.hangs(3)
    clock.now += 2
    assert progress.hangs(3)
    progress.moved()
    assert not progress.hangs(3)


def test_an_idle_engine_never_hangs() -> None:
    clock = Clock()
    progress = Progress(60, clock)
    clock.now += 1000
    assert not progress.hangs(0)
    clock.now += 59
    assert not progress.hangs(1)


def test_the_engine_reports_its_steps() -> None:
    clock = Clock()
    progress = Progress(60, clock)
    watcher = progress.logger_factory()(None, 0)
    clock.now += 100
    watcher.record(None, None)
    assert not progress.hangs(1)
