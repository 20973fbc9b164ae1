"""The TypeScript example against the real server: the contract is not Python-shaped."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.bases import tiny_base
from support.fake_server import BASE, FakeServer, fake_server
from support.fake_trainer import FakeTrainer
from support.node import built_or_skipped, run_example

LINE = '{"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]}\n'


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    built_or_skipped()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    with fake_server(tmp_path_factory.mktemp("node")) as running:
        yield running


def test_the_whole_loop_in_typescript(live: FakeServer, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(LINE * 12)
    worker = threading.Thread(target=FakeTrainer(live.registry, tiny_base(BASE), tmp_path / "trained").run_when_asked)
    worker.start()
    done = run_example(live.grpc, str(data), "dates", "1+1")
    worker.join()
    assert done.returncode == 0, done.stderr
    base, alias, tuned = map(json.loads, done.stdout.splitlines())
    assert (base["model"], base["tokens"]) == (BASE, 5)
    assert alias == {"alias": "canary", "version": 1, "revision": 1}
    assert tuned["model"] == "dates@1"
    assert "Step 3/3: training loss" in done.stderr


def test_an_error_arrives_with_its_text(live: FakeServer, tmp_path: Path) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text("nope\n" * 12)
    done = run_example(live.grpc, str(data), "dates")
    assert done.returncode == 1
    assert "cannot be used" in done.stderr
