"""Adapter files as tensors: what the safetensors package reads, and nothing but errors from damaged ones; and as adapters in
host memory, by what was learned from a file of the same shape."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.lora_books import INNER, PARTS, RANK, WIDTHS, Manager, write_adapter
from tunedock_server.engine import reading
from tunedock_server.engine.mapping import file_bytes, leases
from tunedock_server.engine.matrices import HostAdapter
from tunedock_server.engine.reading import Reader, StageError, split_safetensors, tensors
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
    return tensors(*split_safetensors(file_bytes(path)))


def assert_is_content(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == CONTENT.keys()
    for name, right in CONTENT.items():
        assert torch.equal(found[name], right)
        assert found[name].dtype == right.dtype


def test_every_tensor_is_what_was_saved(file: Path) -> None:
    assert_is_content(read(file))


@pytest.mark.parametrize("more", range(1, 8))
def test_a_header_may_be_of_any_length(file: Path, more: int) -> None:
    """Others than the safetensors package do not fill it up to a multiple of eight."""
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    file.write_bytes((size + more).to_bytes(8, "little") + raw[8 : 8 + size] + b" " * more + raw[8 + size :])
    assert_is_content(read(file))


def test_a_tensor_may_begin_where_its_dtype_would_not(tmp_path: Path) -> None:
    one, two = torch.randn(1).bfloat16(), torch.randn(3)
    header: dict[str, Any] = {
        "one": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]},
        "two": {"dtype": "F32", "shape": [3], "data_offsets": [2, 14]},
    }
    raw = json.dumps(header).encode()
    path = tmp_path / "odd.safetensors"
    data = b"".join(tensor.view(torch.uint8).numpy().tobytes() for tensor in (one, two))
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    found = read(path)
    assert torch.equal(found["one"], one)
    assert torch.equal(found["two"], two)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "its end is missing": lambda raw: raw[:-1],
    "its header is cut": lambda raw: raw[:50],
    "it is empty": lambda raw: b"",
    "it is shorter than the length of a header": lambda raw: raw[:5],
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


def random_adapter(
    folder: Path, lora_id: int, rank: int = 2, dtype: torch.dtype = torch.float32, b_dtype: torch.dtype | None = None
) -> LoRARequest:
    request = write_adapter(folder, lora_id, 0.0, rank)
    generator = torch.Generator().manual_seed(lora_id)
    weights = {}
    for part, width in zip(PARTS, WIDTHS, strict=True):
        a, b = torch.randn(rank, INNER, generator=generator), torch.randn(width, rank, generator=generator)
        weights[f"base_model.model.{part}.lora_A.weight"] = a.to(dtype)
        weights[f"base_model.model.{part}.lora_B.weight"] = b.to(b_dtype or dtype)
    save_file(weights, weights_of(request))
    return request


def weights_of(request: LoRARequest) -> Path:
    return Path(request.lora_path) / "adapter_model.safetensors"


def host(reader: Reader, request: LoRARequest, known: bool = False) -> HostAdapter:
    adapter = reader.read(request, known=known).host
    assert adapter is not None
    return adapter


def assert_same(one: HostAdapter, other: HostAdapter) -> None:
    assert one.dtype == other.dtype
    for ours, theirs in zip(one.pairs, other.pairs, strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
        assert ours[2] == theirs[2]


def assert_is_its_file(adapter: HostAdapter, request: LoRARequest, scaling: float = 1.0) -> None:
    weights = load_file(weights_of(request))
    for part, pair in zip(PARTS, adapter.pairs, strict=True):
        assert pair is not None
        for side, matrix in zip("AB", pair[:2], strict=True):
            assert torch.equal(matrix, weights[f"base_model.model.{part}.lora_{side}.weight"].to(adapter.dtype))
        assert pair[2] == scaling


ENGINES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", ENGINES, ids=str)
@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_an_adapter_is_what_its_file_holds(tmp_path: Path, engine: torch.dtype, dtype: torch.dtype) -> None:
    manager, request = Manager(dtype=engine), random_adapter(tmp_path, 1, dtype=dtype)
    adapter = host(Reader(manager), request)
    assert_is_its_file(adapter, request)
    assert adapter.dtype == (dtype if dtype in manager.books.tunedock_layers.accepted else engine)


def test_a_file_of_several_dtypes_is_an_adapter_of_one(tmp_path: Path) -> None:
    reader = Reader(Manager())
    request = random_adapter(tmp_path, 1, dtype=torch.bfloat16, b_dtype=torch.float32)
    adapter = host(reader, request)
    assert adapter.dtype == torch.float32
    assert_is_its_file(adapter, request)
    assert not reader._recipes, "its matrices are elsewhere than the file's"


def test_a_file_that_needs_no_conversion_stays_mapped_and_others_do_not(tmp_path: Path) -> None:
    gc.collect()
    before = leases.num_held()
    request = random_adapter(tmp_path, 1)
    converted = host(Reader(Manager(dtype=torch.bfloat16)), request)
    assert leases.num_held() == before
    mapped = host(Reader(Manager()), request)
    assert leases.num_held() == before + 1
    del mapped
    assert leases.num_held() == before
    assert converted.is_finite()


def test_a_file_like_one_that_was_read_is_read_as_if_it_were_the_first(tmp_path: Path) -> None:
    requests = [random_adapter(tmp_path, number) for number in (1, 2, 3)]
    reader = Reader(Manager(dtype=torch.bfloat16))
    together = [host(reader, request) for request in requests]
    assert len(reader._recipes) == 1
    for found, request in zip(together, requests, strict=True):
        assert_same(found, host(Reader(Manager(dtype=torch.bfloat16)), request))
        assert_is_its_file(found, request)


def test_another_alpha_rank_or_dtype_is_another_recipe(tmp_path: Path) -> None:
    first, louder, wider = (random_adapter(tmp_path, number, rank) for number, rank in ((1, 2), (2, 2), (3, RANK)))
    short = random_adapter(tmp_path, 4, dtype=torch.float16)
    config = Path(louder.lora_path) / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 2', '"lora_alpha": 6'))
    reader = Reader(Manager(dtype=torch.bfloat16))
    for request, scaling in ((first, 1.0), (louder, 3.0), (wider, 1.0), (short, 1.0)):
        assert_is_its_file(host(reader, request), request, scaling)
    assert len(reader._recipes) == 4


def test_a_recipe_does_not_hide_a_value_that_is_no_number(tmp_path: Path) -> None:
    reader = Reader(Manager(dtype=torch.bfloat16))
    reader.read(random_adapter(tmp_path, 1))
    with pytest.raises(StageError, match="k_proj holds NaN"):
        reader.read(poisoned(random_adapter(tmp_path, 2)))


def poisoned(request: LoRARequest, value: float = float("nan")) -> LoRARequest:
    weights = load_file(weights_of(request))
    weights["base_model.model.k_proj.lora_B.weight"][1, 1] = value
    save_file(weights, weights_of(request))
    return request


@pytest.mark.parametrize("seen", [False, True], ids=["a new shape", "a known shape"])
def test_values_of_files_that_were_checked_before_are_not_looked_at(tmp_path: Path, seen: bool) -> None:
    reader = Reader(Manager())
    if seen:
        reader.read(random_adapter(tmp_path, 1))
    request = poisoned(random_adapter(tmp_path, 2))
    assert not host(reader, request, known=True).is_finite()
    with pytest.raises(StageError, match="k_proj holds NaN"):
        reader.read(request, known=False)


def test_known_files_are_still_compared_with_the_layers(tmp_path: Path) -> None:
    request = write_adapter(tmp_path, 1, 1.0, rank=RANK + 1)
    with pytest.raises(StageError):
        Reader(Manager()).read(request, known=True)


def test_a_number_beyond_the_engines_range_is_refused_by_that_engine_alone(tmp_path: Path) -> None:
    request = poisoned(random_adapter(tmp_path, 1), torch.finfo(torch.float32).max)
    with pytest.raises(StageError, match="beyond the range"):
        Reader(Manager(dtype=torch.bfloat16)).read(request)
    assert host(Reader(Manager()), request).is_finite()


def test_a_file_that_ends_early_is_refused_though_its_header_is_known(tmp_path: Path) -> None:
    reader = Reader(Manager(dtype=torch.bfloat16))
    reader.read(random_adapter(tmp_path, 1))
    short = random_adapter(tmp_path, 2)
    path = weights_of(short)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StageError, match="cannot lie in bytes"):
        reader.read(short)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_unavailable(tmp_path: Path, name: str) -> None:
    request = random_adapter(tmp_path, 1)
    (Path(request.lora_path) / name).unlink()
    with pytest.raises(StageError) as caught:
        Reader(Manager()).read(request)
    assert caught.value.kind == "unavailable"


def test_a_refused_file_is_let_go(tmp_path: Path) -> None:
    gc.collect()
    before = leases.num_held()
    with pytest.raises(StageError):
        Reader(Manager()).read(poisoned(random_adapter(tmp_path, 1)))
    gc.collect()
    assert leases.num_held() == before


def test_only_so_many_recipes_are_kept_and_the_last_used_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_RECIPES", 2)
    reader = Reader(Manager(dtype=torch.bfloat16))
    one, two, three = (random_adapter(tmp_path, number, number) for number in (1, 2, 3))
    for request in (one, two, one, three):
        reader.read(request)
    ranks = [recipe.table["rank"].max() for recipe in reader._recipes.values()]
    assert ranks == [1, 3]
