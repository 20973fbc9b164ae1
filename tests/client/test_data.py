"""Training data in every form that callers have."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tunedock.data import as_jsonl
from tunedock_api.errors import BadInput

ROWS: list[dict[str, Any]] = [{"prompt": "1+1", "completion": "2"}, {"prompt": "é", "completion": "ü"}]


def lines(data: Any) -> list[dict[str, Any]]:
    with as_jsonl(data) as (_, stream):
        return [json.loads(line) for line in stream]


def test_a_path_is_sent_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"broken"\r\n')
    with as_jsonl(path) as (name, stream):
        assert (name, stream.read()) == ("train.jsonl", b'{"broken"\r\n')


def test_an_iterable_of_dicts_becomes_lines() -> None:
    assert lines(iter(ROWS)) == ROWS


def test_a_pandas_frame_becomes_lines() -> None:
    pandas = pytest.importorskip("pandas")
    assert lines(pandas.DataFrame(ROWS)) == ROWS


def test_a_datasets_dataset_becomes_lines() -> None:
    datasets = pytest.importorskip("datasets")
    assert lines(datasets.Dataset.from_list(ROWS)) == ROWS


def test_a_missing_file_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"), as_jsonl(tmp_path / "none.jsonl"):
        pass


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{}, "text"], "example 2 is str"),
        ([{"x": {1, 2}}], "example 1 is not plain JSON"),
        ([{"x": float("nan")}], "example 1"),
    ],
)
def test_an_example_that_is_no_json_object_is_named_by_number(rows: list[Any], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        lines(rows)


def test_a_long_iterable_does_not_fill_memory() -> None:
    def many() -> Iterator[dict[str, str]]:
        for _ in range(40_000):
            yield {"prompt": "x" * 1000, "completion": "y"}

    tracemalloc.start()
    with as_jsonl(many()) as (_, stream):
        stream.seek(0, 2)
        assert stream.tell() > 40_000_000
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 30_000_000
