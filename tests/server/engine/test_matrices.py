"""Adapters in host memory: the table says where in a file's bytes each matrix lies, whatever dtype it is computed in."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import save
from tunedock_server.engine.layers import Layers
from tunedock_server.engine.matrices import HostAdapter, Placement
from tunedock_server.engine.reading import split_safetensors, tensors

INNER, WIDTHS, RANK = 24, (70, 37), 5
LAYERS = Layers.of([(INNER, WIDTHS), (70, (8,))])
PLACES = {"gate": 0, "up": 1, "down": 2}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ENGINES = {
    "float32 engine": (torch.float32,),
    "float32 engine with a kernel for bfloat16": (torch.float32, torch.bfloat16),
    "bfloat16 engine": (torch.bfloat16,),
}


@dataclass(frozen=True)
class _Weights:
    lora_a: torch.Tensor
    lora_b: torch.Tensor
    scaling: float


def _weights(rank: int, width: int, dtype: torch.dtype, scaling: float, seed: int = 0) -> _Weights:
    generator = torch.Generator().manual_seed(rank * width + seed)
    a, b = torch.randn(rank, INNER, generator=generator), torch.randn(width, rank, generator=generator)
    return _Weights(a.to(dtype), b.to(dtype), scaling)


def _two(dtype: torch.dtype, other: torch.dtype | None = None, seed: int = 0) -> dict[str, _Weights]:
    """Of an adapter that leaves `down` alone."""
    return {
        "gate": _weights(3, WIDTHS[0], dtype, 0.5, seed),
        "up": _weights(RANK, WIDTHS[1], other or dtype, 2.0, seed),
    }


def _file(weights: dict[str, _Weights]) -> tuple[dict[str, _Weights], torch.Tensor]:
    """The same as views of a file's data, and that data."""
    halves = {f"{name}.{side}": getattr(item, side) for name, item in weights.items() for side in ("lora_a", "lora_b")}
    header, data = split_safetensors(torch.frombuffer(bytearray(save(halves)), dtype=torch.uint8))
    found = tensors(header, data)
    views = {n: _Weights(found[f"{n}.lora_a"], found[f"{n}.lora_b"], w.scaling) for n, w in weights.items()}
    return views, data


def _from_file(placement: Placement, weights: dict[str, _Weights]) -> HostAdapter:
    views, data = _file(weights)
    recipe = placement.recipe(views, data)
    assert recipe is not None
    return recipe.adapter(data)


def _at(address: Any, like: torch.Tensor) -> torch.Tensor:
    """What the kernel finds there."""
    raw = bytearray(ctypes.string_at(int(address), like.nbytes))
    return torch.frombuffer(raw, dtype=like.dtype).view(like.shape)


def _assert_holds(adapter: HostAdapter, weights: dict[str, _Weights]) -> None:
    for name, number in PLACES.items():
        row, pair = adapter.table[number], adapter.pairs[number]
        if name not in weights:
            assert row["rank"] == 0, "a module that the adapter leaves alone"
            assert pair is None
            continue
        item = weights[name]
        a, b = item.lora_a.to(adapter.dtype), item.lora_b.to(adapter.dtype)
        assert (row["rank"], row["scale"]) == (a.shape[0], item.scaling)
        assert torch.equal(_at(row["a"], a), a)
        assert torch.equal(_at(row["b"], b), b)
        assert pair is not None
        assert torch.equal(pair[0], a)
        assert torch.equal(pair[1], b)
        assert pair[2] == item.scaling


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("accepted", ENGINES.values(), ids=ENGINES.keys())
def test_every_matrix_is_where_the_table_says(accepted: tuple[torch.dtype, ...], dtype: torch.dtype) -> None:
    weights = _two(dtype)
    adapter = _from_file(Placement(LAYERS, PLACES, accepted), weights)
    assert adapter.dtype == (dtype if dtype in accepted else accepted[0])
    assert adapter.rank == RANK
    _assert_holds(adapter, weights)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("accepted", ENGINES.values(), ids=ENGINES.keys())
def test_a_recipe_fits_every_file_of_the_same_shape(accepted: tuple[torch.dtype, ...], dtype: torch.dtype) -> None:
    (first, its_data), (_, data) = _file(_two(dtype)), _file(_two(dtype, seed=1))
    recipe = Placement(LAYERS, PLACES, accepted).recipe(first, its_data)
    assert recipe is not None
    _assert_holds(recipe.adapter(data), _two(dtype, seed=1))
    _assert_holds(recipe.adapter(its_data), _two(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_can_be_computed_as_it_is_stays_in_the_files_bytes(dtype: torch.dtype) -> None:
    views, data = _file(_two(dtype))
    recipe = Placement(LAYERS, PLACES, (torch.float32, torch.bfloat16)).recipe(views, data)
    assert recipe is not None
    assert recipe.adapter(data).memory.data_ptr() == data.data_ptr()


def test_bytes_behind_the_last_whole_element_do_no_harm() -> None:
    views, data = _file(_two(torch.float32))
    longer = torch.cat([data, torch.zeros(3, dtype=torch.uint8)])
    recipe = Placement(LAYERS, PLACES, (torch.float32,)).recipe(views, data)
    assert recipe is not None
    _assert_holds(recipe.adapter(longer), _two(torch.float32))


@pytest.mark.parametrize("other", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("accepted", ENGINES.values(), ids=ENGINES.keys())
def test_a_file_of_several_dtypes_is_copied_into_one(accepted: tuple[torch.dtype, ...], other: torch.dtype) -> None:
    weights = _two(torch.float32, other)
    views, data = _file(weights)
    placement = Placement(LAYERS, PLACES, accepted)
    assert placement.recipe(views, data) is None
    copied = placement.copied(views)
    data.fill_(0)
    assert copied.dtype == accepted[0]
    assert copied.rank == RANK
    _assert_holds(copied, weights)


@pytest.mark.parametrize("name", ["gate", "up"])
def test_a_matrix_that_lies_elsewhere_makes_no_recipe(name: str) -> None:
    views, data = _file(_two(torch.float32))
    views[name] = _Weights(views[name].lora_a, views[name].lora_b.clone(), 1.0)
    placement = Placement(LAYERS, PLACES, (torch.float32,))
    assert placement.recipe(views, data) is None
    _assert_holds(placement.copied(views), views)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("accepted", ENGINES.values(), ids=ENGINES.keys())
def test_one_value_that_is_no_number_shows(accepted: tuple[torch.dtype, ...], dtype: torch.dtype, value: float) -> None:
    placement, weights = Placement(LAYERS, PLACES, accepted), _two(dtype)
    assert _from_file(placement, weights).is_finite()
    assert placement.copied(weights).is_finite()
    weights["gate"].lora_b[40, 2] = value
    assert not _from_file(placement, weights).is_finite()
    assert not placement.copied(weights).is_finite()


def test_values_beyond_the_range_of_the_engines_dtype_show() -> None:
    weights = _two(torch.float32)
    weights["up"].lora_a[0, 0] = torch.finfo(torch.float32).max
    assert _from_file(Placement(LAYERS, PLACES, (torch.float32,)), weights).is_finite()
    assert not _from_file(Placement(LAYERS, PLACES, (torch.bfloat16,)), weights).is_finite()
    assert not Placement(LAYERS, PLACES, (torch.bfloat16,)).copied(weights).is_finite()
