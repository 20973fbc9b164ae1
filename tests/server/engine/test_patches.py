"""Our patches on vLLM's real LoRA managers, around three real layers of a one-block model. No engine."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tunedock_server.engine import cpu_ops, environment, kernel, patches
from tunedock_server.engine.mapping import leases
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
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.interfaces import SupportsLoRA
from vllm.platforms import current_platform

HIDDEN, HEADS, FFN, VOCAB, SLOTS, RANK = 32, 4, 48, 128, 2, 4
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


class BlockWithEmbedding(Block):
    embedding_modules: dict[str, str] = {"embed_tokens": "input_embeddings"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(VOCAB, HIDDEN, prefix="embed_tokens")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmConfig]:
    """With our patches, as the plugin leaves an engine process."""
    environment.prepare(os.environ, 16)
    patches.install()
    rendezvous = f"file://{tmp_path_factory.mktemp('rendezvous') / 'store'}"
    config = VllmConfig(
        lora_config=LoRAConfig(max_lora_rank=8, max_loras=SLOTS, max_cpu_loras=4, lora_dtype=torch.float32)
    )
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, rendezvous, 0, backend="gloo")
        initialize_model_parallel(1, 1)
        yield config
    cleanup_dist_env_and_memory()


def _manager(config: VllmConfig, block: Block) -> Any:
    """A worker manager."""
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.1)
    for layer in (block.qkv_proj, block.o_proj, block.gate_up_proj):
        layer.quant_method.process_weights_after_loading(layer)
    manager = object.__new__(LRUCacheWorkerLoRAManager)
    manager._adapter_manager = LRUCacheLoRAModelManager(
        block, 8, 256, VOCAB, config.lora_config, torch.device("cpu"), config
    )
    manager.lora_config = config.lora_config
    # What vLLM's own loader needs of a worker, beside its manager.
    manager._lora_model_cls = LoRAModel
    manager.vocab_size = VOCAB
    manager.max_position_embeddings = None
    manager.device = torch.device("cpu")
    return manager


@pytest.fixture(scope="module")
def worker_manager(config: VllmConfig) -> Any:
    """All of its modules are plain linear layers."""
    torch.manual_seed(0)
    return _manager(config, Block())


@pytest.fixture(scope="module")
def with_embedding(config: VllmConfig) -> Any:
    """One of its modules is none, so that vLLM fills the slots of all."""
    torch.manual_seed(0)
    return _manager(config, BlockWithEmbedding())


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


def _file(request: LoRARequest) -> Path:
    return Path(request.lora_path) / "adapter_model.safetensors"


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


def _assert_layers_answer(
    manager: Any, rows: tuple[int, ...], loaded: dict[int, tuple[LoRARequest, dict[str, torch.Tensor]]]
) -> None:
    """Each row with its own adapter, and rows of the base bit for bit as without any. The plain layers' outputs."""
    x = torch.randn(len(rows), HIDDEN)
    plain = _outputs(manager, (0,) * len(rows), set(), x)
    mixed = _outputs(manager, rows, {request for request, _ in loaded.values()}, x)
    base = [row for row, lora_id in enumerate(rows) if not lora_id]
    for name, parts in {**Block.packed_modules_mapping, "o_proj": ["o_proj"]}.items():
        zero = {part: torch.zeros(SHAPES[part][1], HIDDEN) for part in parts}
        deltas = {lora_id: [change.get(part, zero[part]) for part in parts] for lora_id, (_, change) in loaded.items()}
        assert torch.allclose(mixed[name], _expected(plain[name], x, rows, deltas), atol=1e-3), name
        assert torch.equal(mixed[name][base], plain[name][base]), name


def _unload(manager: Any, lora_id: int) -> None:
    """As the worker does it."""
    patches.staged_adapters(manager).drop(lora_id)
    manager.remove_adapter(lora_id)


def _bytes_in_slots(manager: Any) -> int:
    plain = [manager._adapter_manager.modules[name] for name in ("qkv_proj", "o_proj", "gate_up_proj")]
    stacks = [tensor for module in plain for tensor in (*module.lora_a_stacked, *module.lora_b_stacked)]
    return sum(tensor.untyped_storage().nbytes() for tensor in stacks)


def test_our_wrapper_is_in_place_and_slots_hold_nothing(worker_manager: Any) -> None:
    adapters = worker_manager._adapter_manager
    (wrapper,) = adapters.punica_wrapper_mapping.values()
    assert type(wrapper).__name__ == TuneDockPunicaCPU.__name__
    assert set(adapters.tunedock_layers.by_name) == {"qkv_proj", "o_proj", "gate_up_proj"}
    assert adapters.modules["qkv_proj"].lora_b_stacked[1].shape == (SLOTS, 1, 16, 8)
    assert _bytes_in_slots(worker_manager) == 12 * torch.float32.itemsize


def test_modules_are_numbered_in_the_order_of_the_layers_columns(worker_manager: Any) -> None:
    layers = worker_manager._adapter_manager.tunedock_layers
    shapes = layers.all.shapes()
    for name, parts in {**Block.packed_modules_mapping, "o_proj": ["o_proj"]}.items():
        first = layers.by_name[name].first
        assert shapes[first : first + len(parts)] == [SHAPES[part] for part in parts]


def test_layers_answer_each_row_with_its_own_adapter(worker_manager: Any, tmp_path: Path) -> None:
    loaded = {101: _adapter(tmp_path, 101), 102: _adapter(tmp_path, 102, ("q_proj", "v_proj", "up_proj"))}
    for request, _ in loaded.values():
        _load(worker_manager, request)
    _assert_layers_answer(worker_manager, (101, 0, 102, 102, 0, 101, 101, 102, 0), loaded)


def test_a_bfloat16_adapter_is_computed_with_as_it_is(worker_manager: Any, tmp_path: Path) -> None:
    request, _ = _adapter(tmp_path, 105)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(_file(request)).items()}
    save_file(weights, _file(request))
    deltas = {
        part: weights[f"base_model.model.{part}.lora_B.weight"].float()
        @ weights[f"base_model.model.{part}.lora_A.weight"].float()
        for part in SHAPES
    }
    _load(worker_manager, request)
    host = patches.staged_adapters(worker_manager).get(105).host
    assert host.dtype == (torch.bfloat16 if kernel.library() is not None else torch.float32)
    _assert_layers_answer(worker_manager, (105, 0, 105), {105: (request, deltas)})


def test_vllms_own_adapters_of_its_warm_up_change_nothing(worker_manager: Any) -> None:
    request = LoRARequest(lora_name="warm-up", lora_int_id=108, lora_path="/not/a/path")
    adapters = worker_manager._adapter_manager
    adapters._registered_adapters[108] = adapters.create_dummy_lora(108, 8, {})
    _assert_layers_answer(worker_manager, (108, 0, 108), {108: (request, {})})
    worker_manager.remove_adapter(108)


def test_a_third_adapter_takes_turns_and_comes_back_without_a_disk(worker_manager: Any, tmp_path: Path) -> None:
    requests = [_adapter(tmp_path, lora_id)[0] for lora_id in (111, 112, 113)]
    x = torch.randn(3, HIDDEN)
    for request in requests:
        _load(worker_manager, request)
        _file(request).unlink()
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
    gc.collect()
    before = leases.num_held()
    request, _ = _adapter(tmp_path, 131)
    _load(worker_manager, request)
    _outputs(worker_manager, (131,), {request}, torch.randn(1, HIDDEN))
    assert leases.num_held() == before + 1
    _unload(worker_manager, 131)
    _outputs(worker_manager, (0,), set(), torch.randn(1, HIDDEN))
    adapters = worker_manager._adapter_manager
    assert 131 not in adapters.lora_index_to_id
    assert 131 not in adapters._registered_adapters
    assert 131 not in patches.staged_adapters(worker_manager).ids()
    assert leases.num_held() == before


def test_a_slot_that_was_freed_serves_the_next_adapter(worker_manager: Any, tmp_path: Path) -> None:
    for lora_id in (141, 142, 143):
        loaded = _adapter(tmp_path, lora_id)
        _load(worker_manager, loaded[0])
        _assert_layers_answer(worker_manager, (lora_id, 0), {lora_id: loaded})
        _unload(worker_manager, lora_id)


def test_vllm_fills_the_slots_where_an_embedding_is_wrapped_as_well(with_embedding: Any, tmp_path: Path) -> None:
    adapters = with_embedding._adapter_manager
    assert "embed_tokens" in adapters.modules
    assert adapters.tunedock_layers is None
    loaded = {201: _adapter(tmp_path, 201), 202: _adapter(tmp_path, 202, ("q_proj", "v_proj", "up_proj"))}
    for request, _ in loaded.values():
        _load(with_embedding, request)
        assert isinstance(patches.staged_adapters(with_embedding).get(request.lora_int_id), LoRAModel)
    assert _bytes_in_slots(with_embedding) > 0
    _assert_layers_answer(with_embedding, (201, 0, 202, 202, 0, 201, 201, 202, 0), loaded)
    for lora_id in loaded:
        _unload(with_embedding, lora_id)


def test_a_slot_that_vllm_fills_serves_the_next_adapter_after_it_was_freed(with_embedding: Any, tmp_path: Path) -> None:
    for lora_id in (211, 212):
        loaded = _adapter(tmp_path, lora_id)
        _load(with_embedding, loaded[0])
        _assert_layers_answer(with_embedding, (lora_id, 0), {lora_id: loaded})
        _unload(with_embedding, lora_id)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
def test_norms_through_the_c_kernels_are_those_of_torch(
    worker_manager: Any, dtype: torch.dtype, tolerance: float
) -> None:
    x, residual, weight = (torch.randn(shape).to(dtype) for shape in ((5, 64), (5, 64), (64,)))
    if not cpu_ops.fits(x, weight, None):
        pytest.skip("vLLM's build for this processor cuts bfloat16 off, and is not used for it")
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
        "forked_engines",
        "cpu_lora",
        "cpu_norm",
    ]
