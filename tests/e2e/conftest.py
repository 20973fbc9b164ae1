"""One server for the session, and two versions of `dates` that were tuned on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.live_server import BASE, Live, live_server

from examples.demo.domain import Domain
from examples.demo.tuning import tune

DATES, NEXT_DATES = Domain("dates"), Domain("dates", "-v2")
# Whichever test comes first waits for the training: about three minutes on two cores without bfloat16 products.
TRAINED_WITHIN_S = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(TRAINED_WITHIN_S))


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(tmp_path_factory.mktemp("e2e") / "home") as running:
        yield running


@pytest.fixture(scope="session")
def dates_v1(live: Live) -> str:
    """The reference of version 1, tuned on the 600 rows of the example."""
    return tune(live.openai, BASE, DATES.train_path, "dates", 1, print).model


@pytest.fixture(scope="session")
def dates_v2(live: Live, dates_v1: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Version 2: other data, so that its answers carry the key `day` where version 1 says `date`. A third of the rows, in
    smaller batches, teach it nearly as much as all of them."""
    rows = NEXT_DATES.train_path.read_text(encoding="utf-8").splitlines(keepends=True)
    some = tmp_path_factory.mktemp("dates") / NEXT_DATES.train_path.name
    some.write_text("".join(rows[:200]), encoding="utf-8")
    return tune(live.openai, BASE, some, "dates", 1, print, batch_size=8).model
