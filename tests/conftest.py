"""The one real server of a test session, for `e2e` and `campaign`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.live_server import Live, live_server


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(tmp_path_factory.mktemp("live") / "home") as running:
        yield running
