"""Staging and slots with a small manager that keeps vLLM's books: the thread, reservations, failures."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from support.lora_books import Manager, write_adapter
from tunedock_server.engine.reading import StageError, module_places
from tunedock_server.engine.slots import PackedAdapter
from tunedock_server.engine.staging import StagedAdapters
from vllm.lora.request import LoRARequest


def _wait(staged: StagedAdapters, lora_id: int) -> None:
    deadline = time.monotonic() + 10
    while not staged.finished(lora_id):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_loaded_adapter_is_in_its_slot_with_its_rank(tmp_path: Path) -> None:
    manager = Manager()
    manager.staged.begin(write_adapter(tmp_path, 11, 3.0), load=True)
    _wait(manager.staged, 11)
    books = manager._adapter_manager
    slot = books.lora_index_to_id.index(11)
    assert books.layer.a[slot, :, :2].eq(3.0).all()
    assert books.layer.b[slot, :2].eq(3.0).all()
    assert books.punica_wrapper_mapping["language_model"].ranks == {slot: 2}


def test_staging_alone_takes_no_slot(tmp_path: Path) -> None:
    manager = Manager()
    manager.staged.begin(write_adapter(tmp_path, 11, 3.0), load=False)
    _wait(manager.staged, 11)
    assert manager._adapter_manager.lora_index_to_id == [None, None, None]
    assert manager.staged.ids() == [11]


def test_while_a_slot_is_filled_no_step_can_take_it_and_others_still_get_one(tmp_path: Path) -> None:
    manager, gate = Manager(slots=2), threading.Event()
    first, second = write_adapter(tmp_path, 11, 1.0), write_adapter(tmp_path, 12, 2.0)
    manager.staged.begin(first, load=False)
    _wait(manager.staged, 11)
    manager.staged._thread.submit(gate.wait)
    manager.staged.begin(second, load=True)
    books = manager._adapter_manager
    assert -12 in books.lora_index_to_id
    manager.add_adapter(first)
    assert books.lora_index_to_id.count(11) == 1
    gate.set()
    _wait(manager.staged, 12)
    assert sorted(owner or 0 for owner in books.lora_index_to_id) == [11, 12]


def test_a_batch_that_needs_every_slot_waits_for_the_reserved_one(tmp_path: Path) -> None:
    manager = Manager(slots=2)
    manager.staged.begin(write_adapter(tmp_path, 11, 1.0), load=True)
    manager.staged.settle_all()
    assert all(owner is None or owner > 0 for owner in manager._adapter_manager.lora_index_to_id)
    _wait(manager.staged, 11)
    assert 11 in manager._adapter_manager.lora_index_to_id


def test_a_failed_load_gives_its_slot_back(tmp_path: Path) -> None:
    manager = Manager()
    request = write_adapter(tmp_path, 11, float("nan"))
    manager.staged.begin(request, load=True)
    with pytest.raises(StageError) as caught:
        _wait(manager.staged, 11)
    assert caught.value.kind == "rejected"
    assert manager._adapter_manager.lora_index_to_id == [None, None, None]
    assert manager.staged.ids() == []
    with pytest.raises(LookupError):
        manager.staged.get(11)


def test_missing_files_are_unavailable_not_rejected(tmp_path: Path) -> None:
    manager = Manager()
    request = LoRARequest(lora_name="gone", lora_int_id=5, lora_path=str(tmp_path / "gone"))
    manager.staged.begin(request, load=False)
    with pytest.raises(StageError) as caught:
        _wait(manager.staged, 5)
    assert caught.value.kind == "unavailable"


def test_dropping_what_is_being_loaded_frees_its_slot(tmp_path: Path) -> None:
    manager = Manager()
    manager.staged.begin(write_adapter(tmp_path, 11, 1.0), load=True)
    manager.staged.drop(11)
    assert manager._adapter_manager.lora_index_to_id == [None, None, None]
    assert manager.staged.ids() == []


def test_the_least_recently_used_adapter_makes_room(tmp_path: Path) -> None:
    manager = Manager(slots=2)
    for lora_id in (11, 12, 13):
        manager.staged.begin(write_adapter(tmp_path, lora_id, float(lora_id)), load=True)
        _wait(manager.staged, lora_id)
    assert sorted(owner or 0 for owner in manager._adapter_manager.lora_index_to_id) == [12, 13]
    manager.add_adapter(LoRARequest(lora_name="x", lora_int_id=11, lora_path="x"))
    assert sorted(owner or 0 for owner in manager._adapter_manager.lora_index_to_id) == [11, 13]


def test_scaling_is_folded_into_b(tmp_path: Path) -> None:
    manager = Manager()
    request = write_adapter(tmp_path, 11, 1.0)
    config = tmp_path / "11" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 2', '"lora_alpha": 6'))
    manager.staged.begin(request, load=False)
    _wait(manager.staged, 11)
    packed = manager.staged.get(11).packed
    assert isinstance(packed, PackedAdapter)
    assert packed.a[0].eq(1.0).all()
    assert packed.b[0].eq(3.0).all()


def test_the_answer_comes_from_the_thread_and_the_step_takes_over(tmp_path: Path) -> None:
    manager = Manager()
    manager.staged.begin(write_adapter(tmp_path, 11, 1.0), load=True)
    assert manager.staged.reply(11).result(timeout=20) == {"done": True}
    assert 11 not in manager._adapter_manager.lora_index_to_id
    manager.staged.collect()
    assert 11 in manager._adapter_manager.lora_index_to_id
    assert manager.staged.reply(11).result(timeout=0) == {"done": True}


def test_the_answer_to_a_failure_says_why_and_nothing_is_left(tmp_path: Path) -> None:
    manager = Manager()
    manager.staged.begin(write_adapter(tmp_path, 11, float("inf")), load=True)
    answer = manager.staged.reply(11).result(timeout=20)
    assert answer["kind"] == "rejected"
    assert "NaN or infinite" in str(answer["error"])
    manager.staged.collect()
    assert manager._adapter_manager.lora_index_to_id == [None, None, None]


def test_module_places_name_the_slice_of_a_packed_layer() -> None:
    layer = object()
    places = module_places({"a.qkv_proj": layer, "a.o_proj": layer}, {"a.qkv_proj": ["a.q", "a.k"]})
    assert places == {"a.o_proj": (layer, 0), "a.q": (layer, 0), "a.k": (layer, 1)}


def test_staging_adds_no_compute_threads_to_those_of_the_steps() -> None:
    before = torch.get_num_threads()
    assert Manager().staged._thread.submit(torch.get_num_threads).result() == 1
    assert torch.get_num_threads() == before
