"""The engine on a CUDA device: vLLM's own LoRA kernels, our staging. Run with `make test ARGS='-m gpu'`."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support.engine import (
    MODEL_ID,
    default_model,
    engine_settings,
    model_facts,
    random_tensors,
    random_version,
    running,
    write_version,
)
from tunedock_api.errors import Rejected
from tunedock_server.pool import EnginePool, GenerateRequest, Pinned, Sampling

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

BASE = Pinned(MODEL_ID)
TEXTS = ([504, 3575, 282, 4649, 314, 7042, 30], [33, 28, 216, 34, 28, 216, 35, 28, 216, 36])
SOLO_TOLERANCE = 0.15


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pinned, ...]:
    base, root = model_facts(default_model()), tmp_path_factory.mktemp("versions")
    return tuple(random_version(root, base, f"line{n}@1", n, 16, 0.03) for n in range(3))


@pytest.fixture(scope="module")
async def engine(versions: tuple[Pinned, ...]) -> AsyncIterator[EnginePool]:
    async with running(engine_settings(default_model(), kv_cache_bytes=2 << 30)) as started:
        for version in versions:
            await started.load(version)
        yield started


async def test_vllms_kernels_serve_and_nothing_is_degraded(engine: EnginePool) -> None:
    assert engine.facts.device == "cuda"
    assert engine.facts.lora_backend == "vllm"
    assert engine.facts.degraded is None
    assert engine.facts.bytes_per_slot > 0


async def test_rows_of_a_mixed_batch_agree_with_their_solo_runs(
    engine: EnginePool, versions: tuple[Pinned, ...]
) -> None:
    runs = [(pinned, text) for text in TEXTS for pinned in (BASE, *versions)]
    together = await asyncio.gather(*(engine.score(text, pinned) for pinned, text in runs))
    for (pinned, text), mixed in zip(runs, together, strict=True):
        alone = torch.tensor((await engine.score(text, pinned)).logprobs)
        assert (torch.tensor(mixed.logprobs) - alone).abs().max() <= SOLO_TOLERANCE


async def test_a_wrong_adapter_is_rejected_and_the_engine_lives(engine: EnginePool, tmp_path: Path) -> None:
    base = model_facts(default_model())
    tensors = random_tensors(base, 9)
    name = next(name for name in tensors if "down_proj.lora_B" in name)
    tensors[name] = tensors[name][:-8].contiguous()
    with pytest.raises(Rejected):
        await engine.load(write_version(tmp_path, tensors, base, "narrow@1"))
    assert (await engine.score(TEXTS[0], BASE)).top1


async def test_loading_hardly_disturbs_another_stream(engine: EnginePool, tmp_path: Path) -> None:
    """Reading and packing are beside the steps; the copy into a slot is not, yet (vLLM's slots are one tensor a layer)."""
    new = random_version(tmp_path, model_facts(default_model()), "new@1", 77, 16)
    request = GenerateRequest("stream", text="Once", sampling=Sampling(max_tokens=600, ignore_eos=True))
    times: list[float] = []
    load: asyncio.Task[None] | None = None
    async for _ in engine.generate(request, BASE):
        times.append(time.perf_counter())
        if len(times) == 200:
            load = asyncio.create_task(engine.load(new))
    assert load is not None
    await load
    gaps = [later - earlier for earlier, later in pairwise(times)]
    print(f"median gap {1000 * statistics.median(gaps):.2f} ms, longest {1000 * max(gaps[10:]):.2f} ms")
    await engine.unload(str(new.digest))
    assert str(new.digest) not in await engine.residency()
