from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.datasets import assistant, chat, facts, jsonl, user
from support.models import default_model_path
from tunedock_api.errors import BadInput, Unavailable
from tunedock_registry.data.inspection import Inspection
from tunedock_registry.data.isolation import IsolatedInspector, Limits
from tunedock_registry.models.tokenizer import load_tokenizer, stop_token_ids


@pytest.fixture(scope="module")
def inspector() -> Iterator[IsolatedInspector]:
    made = IsolatedInspector(default_model_path())
    yield made
    made.close()


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "data.jsonl"
    path.write_bytes(jsonl(facts(40)))
    return str(path)


def child_of(inspector: IsolatedInspector) -> int:
    child = inspector._child
    assert child is not None
    return child.pid


def test_a_file_gets_the_whole_report(inspector: IsolatedInspector, data: str) -> None:
    inspected = inspector.inspect(Inspection(data, validation=data))
    assert (inspected.ok, inspected.status_details) == (True, None)
    assert inspected.report["tokens"]["sequences"] == 40
    assert inspected.report["overlap"]["exact"] == 40
    assert inspected.report["truncation"]["max_length"] == 8192
    assert inspected.report["estimate"]["steps"] == 3 * 5
    assert inspected.report["estimate"]["memory_bytes"] > 1 << 29


def test_the_child_stays_for_the_next_file(inspector: IsolatedInspector, data: str) -> None:
    inspector.inspect(Inspection(data))
    first = child_of(inspector)
    inspector.inspect(Inspection(data))
    assert child_of(inspector) == first


def test_errors_of_the_data_stand_in_the_report(inspector: IsolatedInspector, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(jsonl([*facts(3), chat(user("a"))]))
    inspected = inspector.inspect(Inspection(str(path)))
    assert not inspected.ok
    assert "Example 4" in (inspected.status_details or "")


def test_the_jobs_own_settings_change_the_estimate(inspector: IsolatedInspector, data: str) -> None:
    method: dict[str, Any] = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}}
    asked = Inspection(data, method=method, knobs={"lora": {"rank": 4}}, tokens_per_s=100.0)
    estimate = inspector.inspect(asked).report["estimate"]
    assert (estimate["n_epochs"], estimate["steps"], estimate["rank"]) == (2, 20, 4)
    assert estimate["seconds"] > 1


def test_bad_settings_are_refused_with_their_field(inspector: IsolatedInspector, data: str) -> None:
    with pytest.raises(BadInput) as caught:
        inspector.inspect(Inspection(data, knobs={"lora": {"rnk": 4}}))
    assert caught.value.param == "tunedock.lora.rnk"


def test_a_killed_child_is_replaced(inspector: IsolatedInspector, data: str) -> None:
    inspector.inspect(Inspection(data))
    os.kill(child_of(inspector), signal.SIGKILL)
    time.sleep(0.2)
    assert inspector.inspect(Inspection(data)).ok


def test_a_file_that_takes_too_long_is_refused_and_the_child_ended(data: str) -> None:
    inspector = IsolatedInspector(default_model_path(), Limits(time_s=0.05))
    with pytest.raises(BadInput, match="could not be inspected within"):
        inspector.inspect(Inspection(data))
    assert inspector._child is None


def test_closing_calls_off_the_inspection_that_runs_without_blaming_the_file(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    path.write_bytes(jsonl(facts(20_000)))
    inspector = IsolatedInspector(default_model_path())
    with ThreadPoolExecutor() as threads:
        running = threads.submit(inspector.inspect, Inspection(str(path)))
        time.sleep(0.3)
        started = time.monotonic()
        inspector.close()
        with pytest.raises(Unavailable):
            running.result()
    assert time.monotonic() - started < 2


def test_without_a_model_only_the_text_is_looked_at(data: str) -> None:
    inspector = IsolatedInspector(None)
    report = inspector.inspect(Inspection(data)).report
    inspector.close()
    assert (report["num_examples"], report["tokens"], report["estimate"]) == (40, None, None)


def test_the_light_tokenizer_is_the_trainers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    light, full = load_tokenizer(default_model_path()), AutoTokenizer.from_pretrained(default_model_path())
    text = "Zürich 2024\n\n  12 x <|im_start|>user 日本"
    assert light.encode(text, add_special_tokens=False) == full.encode(text, add_special_tokens=False)
    messages = [user("a"), assistant("b")]
    assert light.apply_chat_template(messages, tokenize=False) == full.apply_chat_template(messages, tokenize=False)
    assert stop_token_ids(default_model_path()) == (2,)
