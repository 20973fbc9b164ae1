"""Two versions of `dates`, tuned on the session's server."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.live_server import BASE, Live

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
def dates_v1(live: Live, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The reference of version 1, tuned on rows of the example."""
    return tune(live.openai, BASE, some_rows(DATES, 400, tmp_path_factory), "dates", 1, print).model


@pytest.fixture(scope="session")
def dates_v2(live: Live, dates_v1: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Version 2: other data, so that its answers carry the key `day` where version 1 says `date`."""
    rows = some_rows(NEXT_DATES, 200, tmp_path_factory)
    return tune(live.openai, BASE, rows, "dates", 1, print, batch_size=8).model


def some_rows(domain: Domain, num: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first of 600: enough to learn it, and a minute or two less of everybody's time. `make demo` trains on all."""
    rows = domain.train_path.read_text(encoding="utf-8").splitlines(keepends=True)
    some = tmp_path_factory.mktemp("rows") / domain.train_path.name
    some.write_text("".join(rows[:num]), encoding="utf-8")
    return some
