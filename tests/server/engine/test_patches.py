"""Our patches on vLLM's real LoRA managers, around three real layers of a one-block model. No engine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from tunedock_server.engine import cpu_ops, environment, patches
from tunedock_server.engine.punica_cpu import TuneDockPunicaCPU
from vllm import ir
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.config.lora import LoRAConfig
from vllm.distributed import (
    cleanup_dist_env_and_memory,
    init_distributed_environment,
    initialize_model_parallel,
)
from vllm.lora.layers import LoRAMapping
from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.models.interfaces import SupportsLoRA
from vllm.platforms import current_platform

HIDDEN, HEADS, FFN, SLOTS, RANK = 32, 4, 48, 2, 4
SHAPES = {
    "q_proj": (HIDDEN, HIDDEN),
    "k_proj": (HIDDEN, 16),
    "v_proj": (HIDDEN, 16),
    "o_proj": (HIDDEN, HIDDEN),
    "gate_proj": (HIDDEN, FFN),
    "up_proj": (HIDDEN, FFN),
}


class Block(nn.Module, SupportsLoRA):  # type: ignore[misc]
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}  # noqa: RUF012
    embedding_modules: dict[str, str] = {}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.config = None
        self.qkv_proj = QKVParallelLinear(HIDDEN, HIDDEN // HEADS, HEADS, 2, bias=False, prefix="qkv_proj")
        self.o_proj = RowParallelLinear(HIDDEN, HIDDEN, bias=False, prefix="o_proj")
        self.gate_up_proj = MergedColumnParallelLinear(HIDDEN, [FFN, FFN], bias=False, prefix="gate_up_proj")


@pytest.fixture(scope="module")
def worker_manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A worker manager with our patches, as the plugin leaves it in an engine process."""
    environment.prepare(os.environ, 16)
    patches.install()
    rendezvous = f"file://{tmp_path_factory.mktemp('rendezvous') / 'store'}"
    config = VllmConfig(
        lora_config=LoRAConfig(max_lora_rank=8, max_loras=SLOTS, max_cpu_loras=4, lora_dtype=torch.float32)
    )
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, rendezvous, 0, backend="gloo")
        initialize_model_parallel(1, 1)
        torch.manual_seed(0)
        block = Block()
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.1)
        for layer in (block.qkv_proj, block.o_proj, block.gate_up_proj):
            layer.quant_method.process_weights_after_loading(layer)
        adapters = LRUCacheLoRAModelManager(block, 8, 256, 100, config.lora_config, torch.device("cpu"), config)
        manager = object.__new__(LRUCacheWorkerLoRAManager)
        manager._adapter_manager = adapters
        manager.lora_config = config.lora_config
        yield manager
    cleanup_dist_env_and_memory()


def _adapter(
    folder: Path, lora_id: int, parts: tuple[str, ...] = tuple(SHAPES)
) -> tuple[LoRARequest, dict[str, torch.Tensor]]:
    """The request, and the change of each module's weight `[out, in]`."""
    generator = torch.Generator().manual_seed(lora_id)
    tensors, deltas = {}, {}
    for part in parts:
        inner, outer = SHAPES[part]
        a, b = torch.randn(RANK, inner, generator=generator), torch.randn(outer, RANK, generator=generator)
        tensors[f"base_model.model.{part}.lora_A.weight"], tensors[f"base_model.model.{part}.lora_B.weight"] = a, b
        deltas[part] = b @ a
    path = folder / str(lora_id)
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(parts), "bias": "none"}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return LoRARequest(lora_name=f"d{lora_id}", lora_int_id=lora_id, lora_path=str(path)), deltas


def _load(manager: Any, request: LoRARequest) -> None:
    staged = patches.staged_adapters(manager)
    staged.begin(request, load=True)
    deadline = time.monotonic() + 20
    while not staged.finished(request.lora_int_id):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _outputs(
    manager: Any, rows: tuple[int, ...], requests: set[LoRARequest], x: torch.Tensor
) -> dict[str, torch.Tensor]:
    manager.set_active_adapters(requests, LoRAMapping(rows, rows, is_prefill=True))
    model = manager._adapter_manager.model
    return {name: getattr(model, name)(x)[0] for name in ("qkv_proj", "o_proj", "gate_up_proj")}


def _expected(
    plain: torch.Tensor, x: torch.Tensor, rows: tuple[int, ...], deltas: dict[int, list[torch.Tensor]]
) -> torch.Tensor:
    out = plain.clone()
    for row, lora_id in enumerate(rows):
        if lora_id:
            out[row] += torch.cat([delta @ x[row] for delta in deltas[lora_id]])
    return out


def test_our_wrapper_and_slots_are_in_place(worker_manager: Any) -> None:
    adapters = worker_manager._adapter_manager
    (wrapper,) = adapters.punica_wrapper_mapping.values()
    assert type(wrapper).__name__ == TuneDockPunicaCPU.__name__
    assert set(adapters.tunedock_layers) == {"qkv_proj", "o_proj", "gate_up_proj"}
    assert adapters.modules["qkv_proj"].lora_b_stacked[1].shape == (SLOTS, 1, 16, 8)


def test_layers_answer_each_row_with_its_own_adapter(worker_manager: Any, tmp_path: Path) -> None:
    first, first_deltas = _adapter(tmp_path, 101)
    second, second_deltas = _adapter(tmp_path, 102, ("q_proj", "v_proj", "up_proj"))
    x = torch.randn(9, HIDDEN)
    plain = _outputs(worker_manager, (0,) * 9, set(), x)
    for request in (first, second):
        _load(worker_manager, request)
    rows = (101, 0, 102, 102, 0, 101, 101, 102, 0)
    mixed = _outputs(worker_manager, rows, {first, second}, x)
    for name, parts in {**Block.packed_modules_mapping, "o_proj": ["o_proj"]}.items():
        zero = {part: torch.zeros(SHAPES[part][1], HIDDEN) for part in parts}
        deltas = {
            101: [first_deltas[part] for part in parts],
            102: [second_deltas.get(part, zero[part]) for part in parts],
        }
        assert torch.allclose(mixed[name], _expected(plain[name], x, rows, deltas), atol=1e-3), name


def test_a_third_adapter_takes_turns_and_comes_back_without_a_disk(worker_manager: Any, tmp_path: Path) -> None:
    requests = [_adapter(tmp_path, lora_id)[0] for lora_id in (111, 112, 113)]
    x = torch.randn(3, HIDDEN)
    for request in requests:
        _load(worker_manager, request)
        (Path(request.lora_path) / "adapter_model.safetensors").unlink()
    alone = {r.lora_int_id: _outputs(worker_manager, (r.lora_int_id,) * 3, {r}, x)["o_proj"] for r in requests}
    again = {r.lora_int_id: _outputs(worker_manager, (r.lora_int_id,) * 3, {r}, x)["o_proj"] for r in requests}
    for lora_id, output in alone.items():
        assert torch.equal(output, again[lora_id])
    assert not torch.allclose(alone[111], alone[112])


def test_an_adapter_that_was_never_staged_cannot_enter_a_step(worker_manager: Any, tmp_path: Path) -> None:
    request, _ = _adapter(tmp_path, 121)
    with pytest.raises(LookupError, match="not staged"):
        _outputs(worker_manager, (121,), {request}, torch.randn(1, HIDDEN))
    x = torch.randn(2, HIDDEN)
    assert _outputs(worker_manager, (0, 0), set(), x)["o_proj"].isfinite().all()


def test_an_id_without_a_slot_fails_instead_of_running_as_the_base(worker_manager: Any) -> None:
    with pytest.raises(KeyError):
        worker_manager.set_active_adapters(set(), LoRAMapping((999,), (999,), is_prefill=True))


def test_removing_frees_slot_and_memory(worker_manager: Any, tmp_path: Path) -> None:
    request, _ = _adapter(tmp_path, 131)
    _load(worker_manager, request)
    patches.staged_adapters(worker_manager).drop(131)
    worker_manager.remove_adapter(131)
    adapters = worker_manager._adapter_manager
    assert 131 not in adapters.lora_index_to_id
    assert 131 not in adapters._registered_adapters
    assert 131 not in patches.staged_adapters(worker_manager).ids()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
def test_norms_through_the_c_kernels_are_those_of_torch(
    worker_manager: Any, dtype: torch.dtype, tolerance: float
) -> None:
    x, residual, weight = (torch.randn(shape).to(dtype) for shape in ((5, 64), (5, 64), (64,)))
    total = x.double() + residual.double()
    expected = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-5) * weight.double()
    normed, kept = cpu_ops.fused_add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
    assert (normed.double() - expected).abs().max() <= tolerance * expected.abs().max()
    assert torch.equal(kept, (x.float() + residual.float()).to(dtype))
    plain = x.double() * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + 1e-5) * weight.double()
    assert (cpu_ops.rms_norm(x, weight, 1e-5).double() - plain).abs().max() <= tolerance * plain.abs().max()


@pytest.mark.parametrize(
    "x",
    [torch.randn(8, 16)[:, ::2], torch.randn(4, 12), torch.randn(4, 8).half()],
    ids=["strided", "odd width", "other dtype"],
)
def test_norms_that_the_kernels_would_refuse_stay_with_torch(x: torch.Tensor) -> None:
    assert cpu_ops.fits(torch.randn(4, 8), torch.randn(8), None)
    assert not cpu_ops.fits(x, torch.randn(x.shape[-1]), None)


def test_vllms_norm_layer_runs_on_them_once_the_worker_set_the_priority(worker_manager: Any) -> None:
    config = VllmConfig()
    config.kernel_config.ir_op_priority = current_platform.get_default_ir_op_priority(config)
    x, residual = torch.randn(5, 64), torch.randn(5, 64)
    with set_current_vllm_config(config):
        norm = RMSNorm(64, eps=1e-5)
        nn.init.normal_(norm.weight)
        plain = norm.forward_native(x.clone(), residual.clone()), norm.forward_native(x.clone())
        with config.kernel_config.ir_op_priority.set_priority():
            ours = norm(x.clone(), residual.clone()), norm(x.clone())
            assert ir.ops.rms_norm.get_priority()[0] == cpu_ops.PROVIDER
    assert torch.allclose(ours[0][0], plain[0][0], atol=1e-5)
    assert torch.allclose(ours[0][1], plain[0][1], atol=1e-5)
    assert torch.allclose(ours[1], plain[1], atol=1e-5)


def test_vllm_prefers_the_c_kernels_on_cpu(worker_manager: Any) -> None:
    priority = current_platform.get_default_ir_op_priority(VllmConfig())
    assert priority.rms_norm == [cpu_ops.PROVIDER, "native"]
    assert priority.fused_add_rms_norm == [cpu_ops.PROVIDER, "native"]


def test_an_unknown_vllm_is_left_alone() -> None:
    assert patches.vllm_is_known()
    assert patches.installed() == [
        "staged_only",
        "constant_time_membership",
        "answer_when_staged",
        "cpu_lora",
        "cpu_norm",
    ]
