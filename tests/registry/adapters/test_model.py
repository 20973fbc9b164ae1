from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from support.adapter_model import machine_on
from support.adapters import facts, make_prepared, write_base
from support.databases import empty_database
from support.registry import FakeTime, open_registry
from support.sizes import sized
from tunedock_registry.adapters.intake import PreparedAdapter
from tunedock_registry.registry import Registry

QUICK = settings(stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
LONG = settings(QUICK, stateful_step_count=50)

Opened = Callable[[], tuple[Registry, Registry, FakeTime]]


@pytest.fixture
def opened(fast_folder: Path, database_url: str | None) -> Iterator[Opened]:
    """Opens an empty registry twice; each call closes what the call before had opened."""
    made: list[Registry] = []
    runs = iter(range(10**9))

    def start() -> tuple[Registry, Registry, FakeTime]:
        while made:
            made.pop().close()
        if database_url is not None:
            empty_database(database_url)
        time, root = FakeTime(), fast_folder / f"home-{next(runs)}"
        made.extend(open_registry(root, time, database_url=database_url) for _ in range(2))
        return made[0], made[1], time

    yield start
    for registry in made:
        registry.close()


@pytest.fixture
def sources(fast_folder: Path) -> list[PreparedAdapter]:
    base = facts(write_base(fast_folder / "base"))
    return [make_prepared(fast_folder / f"lora-{seed}", base, seed) for seed in range(3)]


def test_adapters_behave_as_their_model_in_any_order_of_calls(
    opened: Opened, sources: list[PreparedAdapter], database_url: str | None
) -> None:
    # PostgreSQL starts every example with emptying a dozen tables; the campaign gives it more.
    examples = 15 if database_url is None else 6
    run_state_machine_as_test(machine_on(opened, sources), settings=settings(QUICK, max_examples=examples))


@pytest.mark.parametrize("examples", sized(campaign=15, slow=300))
def test_adapters_behave_as_their_model_in_very_many_orders(
    opened: Opened, sources: list[PreparedAdapter], examples: int
) -> None:
    run_state_machine_as_test(machine_on(opened, sources), settings=settings(LONG, max_examples=examples))
