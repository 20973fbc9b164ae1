"""Reads and checks one adapter's files for the layers of this engine. Runs on the staging thread; changes no state.

Where the slots are ours the result is packed. Elsewhere (GPU, tensor parallelism, wrapped embeddings) it is the `LoRAModel`
that vLLM's own loader makes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tunedock_api.manifest import WEIGHTS_FILE
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.lora.utils import parse_fine_tuned_lora_name

from .slots import PackedAdapter, pack

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


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
    """An adapter in host memory; `packed` is None where vLLM's own form is kept in `model`."""

    id: int
    packed: PackedAdapter | None = None
    model: Any = None


def read(manager: Any, request: LoRARequest) -> Staged:
    """Raises StageError, and nothing else: whatever is wrong belongs to this adapter alone."""
    try:
        return _read(manager, request)
    except StageError:
        raise
    except OSError as error:
        raise StageError("unavailable", f"its files cannot be read ({type(error).__name__})") from error
    except Exception as error:  # thread edge: vLLM and safetensors raise all kinds of errors about contents
        missing = type(error).__name__ == "LoRAAdapterNotFoundError"
        reason = "its files are missing" if missing else str(error)[:500]
        raise StageError("unavailable" if missing else "rejected", reason) from error


def _read(manager: Any, request: LoRARequest) -> Staged:
    adapters = manager._adapter_manager
    places = module_places(adapters.modules, adapters.packed_modules)
    max_rank = adapters.lora_config.max_lora_rank
    layers = getattr(adapters, "tunedock_layers", {})
    if not layers or len(layers) != len(adapters.modules):
        model = manager.read_from_disk(request)
        check(model.loras, places, max_rank)
        check_values(model.loras)
        adapters._create_merged_loras_inplace(model)
        return Staged(request.lora_int_id, model=model)
    weights = _read_weights(Path(request.lora_path), adapters)
    check(weights, places, max_rank)
    owners = {part: name for name, parts in adapters.packed_modules.items() for part in parts}
    slices = {name: (layers[owners.get(name, name)], index) for name, (_, index) in places.items()}
    packed = pack(weights, slices)
    if not packed.is_finite():
        check_values(weights)
        raise StageError("rejected", "it holds values beyond the range of the engine's dtype")
    return Staged(request.lora_int_id, packed=packed)


def _read_weights(path: Path, adapters: Any) -> dict[str, Weights]:
    """vLLM's own rules for config and names, without its detour over one open file and one cast for each tensor."""
    helper = PEFTHelper.from_local_dir(str(path), None)
    helper.validate_legal(adapters.lora_config)
    mapper = getattr(adapters.model, "hf_to_vllm_mapper", None)
    mapper = mapper.get_rename_mapper() if mapper is not None else None
    halves: dict[str, dict[bool, torch.Tensor]] = {}
    for name, tensor in tensors(path / WEIGHTS_FILE).items():
        module, is_a = parse_fine_tuned_lora_name(name, mapper)
        halves.setdefault(module, {})[is_a] = tensor
    for module, pair in halves.items():
        if len(pair) != 2:
            raise StageError("rejected", f"{module} lacks lora_A or lora_B")
    return {m: Weights(pair[True], pair[False], helper.get_rank_and_scaling(m)[1]) for m, pair in halves.items()}


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """A safetensors file as views of one buffer.

    The safetensors package holds the interpreter while it reads, so that every stream waits for it (4 ms of 10 MB). The
    file is not mapped: one that somebody truncates would kill the engine. Raises ValueError for what is no such file.
    """
    with path.open("rb", buffering=0) as stream:
        header_bytes, file_bytes = int.from_bytes(stream.read(8), "little"), path.stat().st_size
        if 8 + header_bytes > file_bytes:
            raise ValueError("it is no safetensors file")
        header = json.loads(stream.read(header_bytes))
        data = torch.empty(file_bytes - 8 - header_bytes, dtype=torch.uint8)
        buffer: Any = data.numpy()
        rest = memoryview(buffer)
        while num := stream.readinto(rest):
            rest = rest[num:]
    return {name: _view(data, **entry) for name, entry in header.items() if name != "__metadata__"}


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
