from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from support.databases import empty_database
from support.queue_model import machine_on
from support.registry import FakeTime, open_registry
from support.sizes import sized
from tunedock_registry.registry import Registry

QUICK = settings(
    max_examples=20, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
LONG = settings(QUICK, stateful_step_count=60)

Opened = Callable[[], tuple[Registry, Registry, FakeTime]]


@pytest.fixture
def opened(home_root: Path, database_url: str | None) -> Iterator[Opened]:
    """Opens an empty registry twice; each call closes what the call before had opened."""
    made: list[Registry] = []
    runs = iter(range(10**9))

    def start() -> tuple[Registry, Registry, FakeTime]:
        while made:
            made.pop().close()
        if database_url is not None:
            empty_database(database_url)
        time, root = FakeTime(), home_root / str(next(runs))
        made.extend(open_registry(root, time, database_url=database_url) for _ in range(2))
        return made[0], made[1], time

    yield start
    for registry in made:
        registry.close()


def test_the_queue_behaves_as_its_model_in_any_order_of_calls(opened: Opened) -> None:
    run_state_machine_as_test(machine_on(opened), settings=QUICK)


@pytest.mark.parametrize("examples", sized(campaign=20, slow=400))
def test_the_queue_behaves_as_its_model_in_very_many_orders(opened: Opened, examples: int) -> None:
    run_state_machine_as_test(machine_on(opened), settings=settings(LONG, max_examples=examples))
