"""Staging and slots with a small manager that keeps vLLM's books: the thread, whose turn it is, failures, files that change."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.lora_books import INNER, WIDTHS, Manager, write_adapter
from tunedock_server.engine.mapping import leases
from tunedock_server.engine.reading import StageError, module_places
from tunedock_server.engine.staging import StagedAdapters
from vllm.lora.request import LoRARequest

WIDTH = sum(WIDTHS)


@pytest.fixture
def before() -> int:
    """Leases that others in this process hold."""
    gc.collect()
    return leases.num_held()


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def _wait(staged: StagedAdapters, lora_id: int) -> None:
    _until(lambda: staged.finished(lora_id))


def _load(manager: Manager, request: LoRARequest) -> None:
    manager.staged.begin(request, load=True)
    _wait(manager.staged, request.lora_int_id)


def _rows(*values: float) -> torch.Tensor:
    return torch.tensor(values).unsqueeze(1).expand(-1, WIDTH)


def _file(request: LoRARequest) -> Path:
    return Path(request.lora_path) / "adapter_model.safetensors"


def test_a_loaded_adapter_has_a_slot_and_answers(tmp_path: Path) -> None:
    manager = Manager()
    _load(manager, write_adapter(tmp_path, 11, 3.0))
    assert 11 in manager.books.lora_index_to_id
    assert torch.equal(manager.books.step(11, 0, 11), _rows(9.0 * INNER * 2, 0.0, 9.0 * INNER * 2))


def test_staging_alone_takes_no_slot(tmp_path: Path) -> None:
    manager = Manager()
    manager.staged.begin(write_adapter(tmp_path, 11, 3.0), load=False)
    _wait(manager.staged, 11)
    assert manager.books.lora_index_to_id == [None, None, None]
    assert manager.books.wrapper.adapters == {}
    assert manager.staged.ids() == [11]


def test_what_is_staged_gets_its_slot_without_the_thread(tmp_path: Path) -> None:
    manager, gate = Manager(), threading.Event()
    request = write_adapter(tmp_path, 11, 1.0)
    manager.staged.begin(request, load=False)
    _wait(manager.staged, 11)
    manager.staged._thread.submit(gate.wait)
    manager.staged.begin(request, load=True)
    assert torch.equal(manager.books.step(11), _rows(INNER * 2.0))
    gate.set()


def test_no_step_sees_an_adapter_while_the_thread_is_at_work_and_others_get_slots(tmp_path: Path) -> None:
    manager, gate = Manager(slots=1), threading.Event()
    first, second = write_adapter(tmp_path, 11, 1.0), write_adapter(tmp_path, 12, 2.0)
    manager.staged.begin(first, load=False)
    _wait(manager.staged, 11)
    manager.staged._thread.submit(gate.wait)
    manager.staged.begin(second, load=True)
    manager.add_adapter(first)
    assert manager.books.lora_index_to_id == [11]
    with pytest.raises(LookupError):
        manager.staged.get(12)
    gate.set()
    _wait(manager.staged, 12)
    assert manager.books.lora_index_to_id == [12]


def test_a_failed_load_takes_no_slot_and_keeps_nothing(tmp_path: Path, before: int) -> None:
    manager = Manager()
    manager.staged.begin(write_adapter(tmp_path, 11, float("nan")), load=True)
    with pytest.raises(StageError) as caught:
        _wait(manager.staged, 11)
    assert caught.value.kind == "rejected"
    del caught
    gc.collect()
    assert leases.num_held() == before
    assert manager.books.lora_index_to_id == [None, None, None]
    assert manager.staged.ids() == []
    with pytest.raises(LookupError):
        manager.staged.get(11)


def test_files_that_were_checked_before_are_not_looked_at(tmp_path: Path) -> None:
    manager = Manager()
    manager.staged.begin(write_adapter(tmp_path, 11, float("nan")), load=True, known=True)
    _wait(manager.staged, 11)
    assert manager.books.step(11).isnan().all()


def test_missing_files_are_unavailable_not_rejected(tmp_path: Path) -> None:
    manager = Manager()
    request = LoRARequest(lora_name="gone", lora_int_id=5, lora_path=str(tmp_path / "gone"))
    manager.staged.begin(request, load=False)
    with pytest.raises(StageError) as caught:
        _wait(manager.staged, 5)
    assert caught.value.kind == "unavailable"


def test_dropping_what_is_being_loaded_leaves_no_slot_and_no_mapping(tmp_path: Path, before: int) -> None:
    manager, gate = Manager(), threading.Event()
    manager.staged._thread.submit(gate.wait)
    manager.staged.begin(write_adapter(tmp_path, 11, 1.0), load=True)
    manager.staged.drop(11)
    gate.set()
    manager.staged._thread.shutdown()
    manager.staged.collect()
    assert manager.books.lora_index_to_id == [None, None, None]
    assert manager.staged.ids() == []
    assert leases.num_held() == before


def test_dropping_an_adapter_gives_its_file_back(tmp_path: Path, before: int) -> None:
    manager = Manager()
    request = write_adapter(tmp_path, 11, 1.0)
    _load(manager, request)
    assert leases.num_held() == before + 1
    manager.unload(11)
    assert manager.books.wrapper.adapters == {}
    assert manager.books.lora_index_to_id == [None, None, None]
    # The thread lets go of its result a moment after it has given it.
    _until(lambda: leases.num_held() == before)


def test_the_step_after_the_last_use_lets_go_of_a_dropped_adapter(tmp_path: Path, before: int) -> None:
    manager = Manager()
    _load(manager, write_adapter(tmp_path, 11, 1.0))
    _load(manager, write_adapter(tmp_path, 12, 2.0))
    manager.books.step(11, 12)
    manager.unload(11)
    assert torch.equal(manager.books.step(0, 12), _rows(0.0, 4.0 * INNER * 2))
    _until(lambda: leases.num_held() == before + 1)


def test_a_slot_that_was_freed_serves_the_next_adapter(tmp_path: Path) -> None:
    manager = Manager(slots=1)
    for lora_id in (11, 12):
        _load(manager, write_adapter(tmp_path, lora_id, float(lora_id)))
        assert torch.equal(manager.books.step(lora_id), _rows(lora_id**2 * INNER * 2.0))
        manager.unload(lora_id)


def _draft(file: Path) -> Path:
    draft = file.with_suffix(".new")
    draft.write_bytes(b"something else")
    return draft


CHANGES: dict[str, Callable[[Path], object]] = {
    "removed": lambda file: file.unlink(),
    "overwritten": lambda file: file.write_bytes(b"something else"),
    "emptied": lambda file: file.write_bytes(b""),
    "replaced": lambda file: _draft(file).replace(file),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_adapter_answers_right_whatever_happens_to_its_file(
    tmp_path: Path, dtype: torch.dtype, kernel: bool, change: Callable[[Path], object]
) -> None:
    """Writers wait for the thread that watches the leases."""
    manager = Manager(dtype=dtype)
    manager.books.wrapper.use_kernel(kernel)
    request = write_adapter(tmp_path, 11, 2.0, dtype=dtype)
    _load(manager, request)
    change(_file(request))
    assert torch.equal(manager.books.step(11, 0), _rows(4.0 * INNER * 2, 0.0).to(dtype))


def test_the_least_recently_used_adapter_makes_room_and_comes_back_from_memory(tmp_path: Path) -> None:
    manager = Manager(slots=2)
    for lora_id in (11, 12, 13):
        request = write_adapter(tmp_path, lora_id, float(lora_id))
        _load(manager, request)
        _file(request).unlink()
    assert sorted(owner or 0 for owner in manager.books.lora_index_to_id) == [12, 13]
    manager.add_adapter(LoRARequest(lora_name="x", lora_int_id=11, lora_path="x"))
    assert sorted(owner or 0 for owner in manager.books.lora_index_to_id) == [11, 13]
    assert torch.equal(manager.books.step(13, 11), _rows(169.0 * INNER * 2, 121.0 * INNER * 2))


def test_a_slot_is_taken_once_and_use_makes_it_recent(tmp_path: Path) -> None:
    manager = Manager(slots=2)
    requests = {lora_id: write_adapter(tmp_path, lora_id, 1.0) for lora_id in (11, 12, 13)}
    for lora_id in (11, 12):
        _load(manager, requests[lora_id])
    manager.add_adapter(requests[11])
    assert manager.books.lora_index_to_id == [11, 12]
    _load(manager, requests[13])
    assert manager.books.lora_index_to_id == [11, 13]


def test_dropping_an_adapter_without_a_slot_leaves_the_others_theirs(tmp_path: Path) -> None:
    manager = Manager(slots=1)
    for lora_id in (11, 12):
        _load(manager, write_adapter(tmp_path, lora_id, float(lora_id)))
    manager.unload(11)
    assert torch.equal(manager.books.step(12), _rows(144.0 * INNER * 2))


def test_the_scaling_is_that_of_the_config(tmp_path: Path) -> None:
    manager = Manager()
    request = write_adapter(tmp_path, 11, 1.0)
    config = tmp_path / "11" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 2', '"lora_alpha": 6'))
    _load(manager, request)
    assert torch.equal(manager.books.step(11), _rows(3.0 * INNER * 2))


def test_the_answer_comes_from_the_thread_and_the_step_takes_over(tmp_path: Path) -> None:
    manager = Manager()
    manager.staged.begin(write_adapter(tmp_path, 11, 1.0), load=True)
    assert manager.staged.reply(11).result(timeout=20) == {"done": True}
    assert 11 not in manager.books.lora_index_to_id
    manager.staged.collect()
    assert 11 in manager.books.lora_index_to_id
    assert manager.staged.reply(11).result(timeout=0) == {"done": True}


def test_the_answer_to_a_failure_says_why_and_nothing_is_left(tmp_path: Path) -> None:
    manager = Manager()
    manager.staged.begin(write_adapter(tmp_path, 11, float("inf")), load=True)
    answer = manager.staged.reply(11).result(timeout=20)
    assert answer["kind"] == "rejected"
    assert "NaN or infinite" in str(answer["error"])
    manager.staged.collect()
    assert manager.books.lora_index_to_id == [None, None, None]


def test_module_places_name_the_slice_of_a_packed_layer() -> None:
    layer = object()
    places = module_places({"a.qkv_proj": layer, "a.o_proj": layer}, {"a.qkv_proj": ["a.q", "a.k"]})
    assert places == {"a.o_proj": (layer, 0), "a.q": (layer, 0), "a.k": (layer, 1)}


def test_staging_adds_no_compute_threads_to_those_of_the_steps() -> None:
    before = torch.get_num_threads()
    assert Manager().staged._thread.submit(torch.get_num_threads).result() == 1
    assert torch.get_num_threads() == before
