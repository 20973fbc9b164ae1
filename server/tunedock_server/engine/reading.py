"""Reads and checks one adapter's files for the layers of this engine. Runs on the staging thread; changes no state.

Where the kernel computes from files as they are, the result is their bytes and a table. Elsewhere (GPU, tensor parallelism,
wrapped embeddings) it is the `LoRAModel` that vLLM's own loader makes.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tunedock_api.manifest import CONFIG_FILE, WEIGHTS_FILE
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.lora.utils import parse_fine_tuned_lora_name

from .mapping import file_bytes
from .matrices import HostAdapter, Placement, Recipe

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
MAX_RECIPES = 16
_ALIGNED_BYTES = 8  # of every dtype above


class StageError(Exception):
    """`kind`: `rejected` (wrong contents) or `unavailable` (missing or unreadable files)."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass
class Weights:
    """Of one module: lora_a `[r, in]`, lora_b `[out, r]`."""

    lora_a: torch.Tensor
    lora_b: torch.Tensor
    scaling: float


@dataclass(frozen=True)
class Staged:
    """An adapter in host memory; `host` is None where vLLM's own form is kept in `model`."""

    id: int
    host: HostAdapter | None = None
    model: Any = None


class Reader:
    """Reads for `manager`, vLLM's worker LoRA manager. One thread at a time."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._recipes: OrderedDict[tuple[bytes, ...], Recipe] = OrderedDict()

    def read(self, request: LoRARequest, known: bool = False) -> Staged:
        """`known`: these very files were read and checked before, so that their values need no look.

        Raises StageError, and nothing else: whatever is wrong belongs to this adapter alone.
        """
        try:
            return self._read(request, known)
        except StageError:
            raise
        except OSError as error:
            raise StageError("unavailable", f"its files cannot be read ({type(error).__name__})") from error
        except Exception as error:  # thread edge: vLLM and safetensors raise all kinds of errors about contents
            missing = type(error).__name__ == "LoRAAdapterNotFoundError"
            reason = "its files are missing" if missing else str(error)[:500]
            raise StageError("unavailable" if missing else "rejected", reason) from error

    def _read(self, request: LoRARequest, known: bool) -> Staged:
        adapters = self._manager._adapter_manager
        if getattr(adapters, "tunedock_layers", None) is not None:
            return Staged(request.lora_int_id, host=self._host(Path(request.lora_path), known))
        model = self._manager.read_from_disk(request)
        self._check(model.loras)
        check_values(model.loras)
        adapters._create_merged_loras_inplace(model)
        return Staged(request.lora_int_id, model=model)

    def _host(self, folder: Path, known: bool) -> HostAdapter:
        """By the recipe of an earlier file with the same header and config, or by looking at every tensor."""
        config = (folder / CONFIG_FILE).read_bytes()
        header, data = split_safetensors(file_bytes(folder / WEIGHTS_FILE))
        key = (config, header, str(len(data)).encode())
        recipe = self._recipes.get(key)
        if recipe is None:
            adapter = self._new(key, self._weights(config, header, data), data)
        else:
            self._recipes.move_to_end(key)
            adapter = recipe.adapter(data)
        if not known and not adapter.is_finite():
            check_values(self._weights(config, header, data))
            raise StageError("rejected", "it holds values beyond the range of the engine's dtype")
        return adapter

    def _new(self, key: tuple[bytes, ...], weights: dict[str, Weights], data: torch.Tensor) -> HostAdapter:
        self._check(weights)
        recipe = self._placement.recipe(weights, data)
        if recipe is None:
            return self._placement.copied(weights)
        self._recipes[key] = recipe
        if len(self._recipes) > MAX_RECIPES:
            self._recipes.popitem(last=False)
        return recipe.adapter(data)

    @cached_property
    def _placement(self) -> Placement:
        adapters = self._manager._adapter_manager
        numbers: dict[str, int] = {}
        for name, layer in adapters.tunedock_layers.by_name.items():
            parts = adapters.packed_modules.get(name, [name])
            numbers.update((part, layer.first + index) for index, part in enumerate(parts))
        return Placement(adapters.tunedock_layers.all, numbers, adapters.tunedock_layers.accepted)

    @cached_property
    def _places(self) -> dict[str, tuple[Any, int]]:
        adapters = self._manager._adapter_manager
        return module_places(adapters.modules, adapters.packed_modules)

    def _check(self, loras: dict[str, Any]) -> None:
        check(loras, self._places, self._manager._adapter_manager.lora_config.max_lora_rank)

    def _weights(self, config: bytes, header: bytes, data: torch.Tensor) -> dict[str, Weights]:
        """vLLM's own rules for config and names, without its detour over one open file and one cast for each tensor."""
        adapters = self._manager._adapter_manager
        helper = PEFTHelper.from_dict({**json.loads(config), "vllm_max_position_embeddings": None})
        helper.validate_legal(adapters.lora_config)
        mapper = getattr(adapters.model, "hf_to_vllm_mapper", None)
        mapper = mapper.get_rename_mapper() if mapper is not None else None
        halves: dict[str, dict[bool, torch.Tensor]] = {}
        for name, tensor in tensors(header, data).items():
            module, is_a = parse_fine_tuned_lora_name(name, mapper)
            halves.setdefault(module, {})[is_a] = tensor
        for module, pair in halves.items():
            if len(pair) != 2:
                raise StageError("rejected", f"{module} lacks lora_A or lora_B")
        return {m: Weights(pair[True], pair[False], helper.get_rank_and_scaling(m)[1]) for m, pair in halves.items()}


def split_safetensors(file: torch.Tensor) -> tuple[bytes, torch.Tensor]:
    """A file's header and its data, which begin on a multiple of 8 bytes. Raises ValueError for what is no such file."""
    begin = 8 + int.from_bytes(file[:8].numpy().tobytes(), "little")
    if begin > len(file):
        raise ValueError("it is no safetensors file")
    data = file[begin:]
    return file[8:begin].numpy().tobytes(), data if begin % _ALIGNED_BYTES == 0 else data.clone()


def tensors(header: bytes, data: torch.Tensor) -> dict[str, torch.Tensor]:
    """Views of `data`. Raises ValueError or TypeError for a header that says what cannot be."""
    return {name: _view(data, **entry) for name, entry in json.loads(header).items() if name != "__metadata__"}


def _view(data: torch.Tensor, dtype: str, shape: list[int], data_offsets: list[int]) -> torch.Tensor:
    start, end = data_offsets
    if (
        dtype not in _DTYPES
        or not 0 <= start <= end <= len(data)
        or math.prod(shape) * _DTYPES[dtype].itemsize != end - start
    ):
        raise ValueError(f"a tensor of {dtype} {shape} cannot lie in bytes {start} to {end}")
    part = data[start:end]
    return (part if start % _DTYPES[dtype].itemsize == 0 else part.clone()).view(_DTYPES[dtype]).view(shape)


def module_places(modules: dict[str, Any], packed: dict[str, list[str]]) -> dict[str, tuple[Any, int]]:
    """Module as adapters name it (q_proj, not qkv_proj) -> its wrapped layer and which slice of that."""
    places = {name: (layer, 0) for name, layer in modules.items() if name not in packed}
    for name, parts in packed.items():
        places.update({part: (modules[name], index) for index, part in enumerate(parts) if name in modules})
    return places


def check(loras: dict[str, Any], places: dict[str, tuple[Any, int]], max_rank: int) -> None:
    """Compares every tensor with the wrapped layer that it is for, before packing. Raises StageError.

    vLLM drops weights of other modules without a word, and takes a matrix that is too small into a corner of the slot.
    """
    if not loras:
        raise StageError("rejected", "it holds no weights for this base model")
    for name, weights in loras.items():
        if name not in places:
            raise StageError("rejected", f"this engine serves no adapter weights for {name}")
        _check_shapes(name, weights, *places[name], max_rank)


def check_values(loras: dict[str, Any]) -> None:
    """Raises StageError for the first module with a value that is no number."""
    for name, weights in loras.items():
        if not (torch.isfinite(weights.lora_a).all() and torch.isfinite(weights.lora_b).all()):
            raise StageError("rejected", f"{name} holds NaN or infinite values")


def _check_shapes(name: str, weights: Any, layer: Any, index: int, max_rank: int) -> None:
    a, b = weights.lora_a, weights.lora_b
    if a is None or b is None or a.dim() != 2 or b.dim() != 2:
        raise StageError("rejected", f"{name} lacks lora_A or lora_B, or one is no matrix")
    if a.shape[0] > max_rank or a.shape[0] != b.shape[1]:
        raise StageError("rejected", f"{name}: rank {a.shape[0]}/{b.shape[1]}, at most {max_rank} can be served")
    if getattr(layer, "tp_size", 1) == 1 and len(layer.lora_a_stacked) > index:
        expected = (layer.lora_a_stacked[index].shape[-1], layer.lora_b_stacked[index].shape[-2])
        if (a.shape[1], b.shape[0]) != expected:
            raise StageError("rejected", f"{name} is {a.shape[1]} -> {b.shape[0]}, the base model's is {expected}")
