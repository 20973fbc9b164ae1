"""Adapter files as tensors: what the safetensors package reads, and nothing but errors from damaged ones; and packed, by what
was learned from a file of the same shape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.lora_books import INNER, PARTS, RANK, WIDTHS, Manager, write_adapter
from tunedock_server.engine import reading
from tunedock_server.engine.reading import Reader, StageError, read_safetensors, tensors
from vllm.lora.request import LoRARequest

CONTENT = {
    "a": torch.randn(3, 5),
    "b": torch.randn(4, 2).bfloat16(),
    "c": torch.randn(7).half(),
    "nothing": torch.zeros(0, 4),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(CONTENT, tmp_path / "adapter.safetensors", metadata={"format": "pt"})
    return tmp_path / "adapter.safetensors"


def read(path: Path) -> dict[str, torch.Tensor]:
    header, buffer, num_bytes = read_safetensors(path, torch.empty(0, dtype=torch.uint8))
    return tensors(header, buffer[:num_bytes])


def test_every_tensor_is_what_was_saved(file: Path) -> None:
    found = read(file)
    assert found.keys() == CONTENT.keys()
    for name, expected in CONTENT.items():
        assert torch.equal(found[name], expected)
        assert found[name].dtype == expected.dtype


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "its end is missing": lambda raw: raw[:-1],
    "its header is cut": lambda raw: raw[:50],
    "it is empty": lambda raw: b"",
    "its header claims to be huge": lambda raw: b"\xff" * 8 + raw[8:],
    "its header is no JSON": lambda raw: raw[:8] + b"x" * len(raw[8:]),
    "a shape does not fit its bytes": lambda raw: raw.replace(b"[3,5]", b"[3,6]"),
    "a dtype is none that weights have": lambda raw: raw.replace(b'"BF16"', b'"I16" '),
    "a tensor begins before the file": lambda raw: raw.replace(b'"data_offsets":[0,', b'"data_offsets":[-4,'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_an_error_and_no_tensors(file: Path, damage: Callable[[bytes], bytes]) -> None:
    raw = file.read_bytes()
    file.write_bytes(damage(raw))
    assert file.read_bytes() != raw
    with pytest.raises((ValueError, TypeError)):
        read(file)


def random_adapter(folder: Path, lora_id: int, rank: int = 2) -> LoRARequest:
    request = write_adapter(folder, lora_id, 0.0, rank)
    generator = torch.Generator().manual_seed(lora_id)
    weights = {}
    for part, width in zip(PARTS, WIDTHS, strict=True):
        a, b = torch.randn(rank, INNER, generator=generator), torch.randn(width, rank, generator=generator)
        weights[f"base_model.model.{part}.lora_A.weight"] = a
        weights[f"base_model.model.{part}.lora_B.weight"] = b
    save_file(weights, Path(request.lora_path) / "adapter_model.safetensors")
    return request


def memory(reader: Reader, request: LoRARequest) -> torch.Tensor:
    packed = reader.read(request).packed
    assert packed is not None
    return packed.memory


def test_a_file_like_one_that_was_read_is_packed_as_if_it_were_the_first(tmp_path: Path) -> None:
    requests = [random_adapter(tmp_path, number) for number in (1, 2, 3)]
    reader = Reader(Manager(dtype=torch.bfloat16))
    together = [memory(reader, request) for request in requests]
    assert len(reader._recipes) == 1
    for found, request in zip(together, requests, strict=True):
        assert torch.equal(found, memory(Reader(Manager(dtype=torch.bfloat16)), request))
    assert not torch.equal(together[0], together[1])


def test_another_alpha_or_rank_is_another_recipe(tmp_path: Path) -> None:
    first, louder, wider = (random_adapter(tmp_path, number, rank) for number, rank in ((1, 2), (2, 2), (3, RANK)))
    config = Path(louder.lora_path) / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 2', '"lora_alpha": 6'))
    reader = Reader(Manager(dtype=torch.bfloat16))
    for request in (first, louder, wider):
        assert torch.equal(memory(reader, request), memory(Reader(Manager(dtype=torch.bfloat16)), request))
    assert len(reader._recipes) == 3


def test_a_recipe_does_not_hide_a_value_that_is_no_number(tmp_path: Path) -> None:
    reader = Reader(Manager(dtype=torch.bfloat16))
    reader.read(random_adapter(tmp_path, 1))
    with pytest.raises(StageError, match="k_proj holds NaN"):
        reader.read(poisoned(random_adapter(tmp_path, 2)))


def poisoned(request: LoRARequest) -> LoRARequest:
    path = Path(request.lora_path) / "adapter_model.safetensors"
    weights = load_file(path)
    weights["base_model.model.k_proj.lora_B.weight"][1, 1] = float("nan")
    save_file(weights, path)
    return request


def test_a_file_that_ends_early_is_refused_though_its_header_is_known(tmp_path: Path) -> None:
    reader = Reader(Manager(dtype=torch.bfloat16))
    reader.read(random_adapter(tmp_path, 1))
    short = random_adapter(tmp_path, 2)
    path = Path(short.lora_path) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StageError, match="cannot lie in bytes"):
        reader.read(short)


def test_only_so_many_recipes_are_kept_and_the_last_used_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_RECIPES", 2)
    reader = Reader(Manager(dtype=torch.bfloat16))
    one, two, three = (random_adapter(tmp_path, number, number) for number in (1, 2, 3))
    for request in (one, two, one, three):
        reader.read(request)
    ranks = [recipe.layout.rank for recipe in reader._recipes.values()]
    assert ranks == [1, 3]


def test_a_large_file_leaves_no_buffer_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_KEPT_BYTES", 100)
    reader = Reader(Manager(dtype=torch.bfloat16))
    reader.read(random_adapter(tmp_path, 1))
    assert len(reader._buffer) == 0
