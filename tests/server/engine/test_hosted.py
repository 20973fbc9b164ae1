"""Staging, loading and unloading on the real engine: what is wrong with one adapter never reaches anyone else."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
import torch
from support.engine import MODEL_ID, random_tensors, random_version, write_version
from tunedock_api.errors import Conflict, Overloaded, Rejected, TuneDockError, Unavailable
from tunedock_api.manifest import WEIGHTS_FILE
from tunedock_registry.models.facts import BaseFacts
from tunedock_server.pool import EnginePool, GenerateRequest, Pinned, Sampling

BASE = Pinned(MODEL_ID)
Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
async def clean(bf16: EnginePool, versions: tuple[Pinned, ...]) -> AsyncIterator[None]:
    """Each test begins and ends with the three versions in their slots and nothing else."""
    yield
    for digest in (await bf16.residency()).keys() - {version.digest for version in versions}:
        await bf16.unload(digest)
    for version in versions:
        await bf16.load(version)


async def _answer(engine: EnginePool, pinned: Pinned, prompt: str = "The capital of France is") -> tuple[str, int]:
    """The greedy text and how many prompt tokens came from the prefix cache."""
    request = GenerateRequest(
        f"{pinned.public}-{id(object())}", text=prompt, sampling=Sampling(max_tokens=8, temperature=0.0)
    )
    deltas = [delta async for delta in engine.generate(request, pinned)]
    return "".join(delta.text for delta in deltas), deltas[-1].cached_tokens


def _first(tensors: Tensors, kind: str) -> str:
    return next(name for name in tensors if kind in name)


def _nan(tensors: Tensors) -> None:
    tensors[_first(tensors, "lora_A")][0, 0] = float("nan")


def _too_wide(tensors: Tensors) -> None:
    name = _first(tensors, "q_proj.lora_A")
    tensors[name] = torch.zeros(8, tensors[name].shape[1] + 8, dtype=torch.bfloat16)


def _too_narrow(tensors: Tensors) -> None:
    name = _first(tensors, "down_proj.lora_B")
    tensors[name] = tensors[name][:-8].contiguous()


def _other_model(tensors: Tensors) -> None:
    for name in list(tensors):
        tensors[name.replace("self_attn", "attention")] = tensors.pop(name)


def _rank_of_one_module(tensors: Tensors) -> None:
    name = _first(tensors, "o_proj.lora_A")
    tensors[name] = tensors[name][:4].contiguous()


@pytest.mark.parametrize("break_it", [_nan, _too_wide, _too_narrow, _other_model, _rank_of_one_module])
async def test_wrong_contents_are_rejected_with_the_reason_and_the_engine_lives(
    bf16: EnginePool, base: BaseFacts, tmp_path: Path, break_it: Callable[[Tensors], None]
) -> None:
    tensors = random_tensors(base, 1)
    break_it(tensors)
    broken = write_version(tmp_path, tensors, base, "broken@1")
    with pytest.raises(Rejected, match=r"broken@1 cannot be loaded: .+"):
        await bf16.load(broken)
    assert broken.digest not in await bf16.residency()
    assert (await _answer(bf16, BASE))[0]


async def test_a_rank_above_the_cap_is_rejected(bf16: EnginePool, base: BaseFacts, tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="rank"):
        await bf16.stage(random_version(tmp_path, base, "wide@1", 1, rank=32))
    assert bf16.alive()


async def test_missing_and_changed_files_are_one_typed_error(bf16: EnginePool, base: BaseFacts, tmp_path: Path) -> None:
    for public, seed, damage in (
        ("gone@1", 5, Path.unlink),
        ("bent@1", 6, lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?")),
    ):
        version = random_version(tmp_path, base, public, seed)
        assert version.path is not None
        damage(version.path / WEIGHTS_FILE)
        with pytest.raises(Unavailable) as caught:
            await bf16.stage(version)
        assert caught.value.code == "adapter_unavailable"
        assert str(tmp_path) not in caught.value.message
    assert (await _answer(bf16, BASE))[0]


async def test_a_version_that_was_never_staged_is_one_typed_error(
    bf16: EnginePool, base: BaseFacts, tmp_path: Path
) -> None:
    stranger = random_version(tmp_path, base, "stranger@1", 6)
    with pytest.raises(Unavailable) as caught:
        await _answer(bf16, stranger)
    assert caught.value.code == "adapter_unavailable"
    assert (await _answer(bf16, BASE))[0]


async def test_version_two_never_reuses_version_ones_prefix_blocks(
    bf16: EnginePool, base: BaseFacts, tmp_path: Path
) -> None:
    long_prompt = "The quick brown fox jumps over the lazy dog near the river bank. " * 30
    one, two = (random_version(tmp_path, base, f"line@{n}", 40 + n, strength=0.3) for n in (1, 2))
    await bf16.load(one)
    first, _ = await _answer(bf16, one, long_prompt)
    again, cached = await _answer(bf16, one, long_prompt)
    assert cached >= 256
    assert again == first
    await bf16.load(two)
    other, cached = await _answer(bf16, two, long_prompt)
    assert cached == 0
    assert other != first
    await bf16.unload(str(one.digest))
    back, _ = await _answer(bf16, two, long_prompt)
    assert back == other


async def test_loading_while_others_stream_changes_no_answer(
    bf16: EnginePool, base: BaseFacts, versions: tuple[Pinned, ...], tmp_path: Path
) -> None:
    new = random_version(tmp_path, base, "new@1", 60)
    quiet = [await _answer(bf16, pinned) for pinned in (BASE, versions[0])]
    loads = asyncio.create_task(bf16.load(new))
    busy = await asyncio.gather(*(_answer(bf16, pinned) for pinned in (BASE, versions[0]) * 4))
    await loads
    assert {text for text, _ in busy} == {text for text, _ in quiet}


async def test_callers_that_wait_for_one_version_share_one_load(
    bf16: EnginePool, base: BaseFacts, tmp_path: Path
) -> None:
    version = random_version(tmp_path, base, "shared@1", 61)
    waiting = [asyncio.create_task(bf16.load(version)) for _ in range(8)]
    waiting[0].cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results[1:]] == [type(None)] * 7
    assert (await bf16.residency())[str(version.digest)] == "slot"


async def test_more_versions_than_slots_take_turns_and_host_places_are_bounded(
    bf16: EnginePool, base: BaseFacts, versions: tuple[Pinned, ...], tmp_path: Path
) -> None:
    extra = [random_version(tmp_path, base, f"extra{n}@1", 70 + n) for n in range(4)]
    for version in extra[:3]:
        await bf16.load(version)
    with pytest.raises(Overloaded, match="6 host places"):
        await bf16.stage(extra[3])
    answers = await asyncio.gather(*(_answer(bf16, pinned) for pinned in (*versions, *extra[:3]) * 2))
    assert answers[:6] == [(text, cached) for text, cached in answers[6:]]
    places = await bf16.residency()
    assert sorted(places.values()).count("slot") == 3


async def test_unloading_frees_memory_and_a_running_request_forbids_it(
    bf16: EnginePool, base: BaseFacts, tmp_path: Path
) -> None:
    version = random_version(tmp_path, base, "cycle@1", 80, rank=16)
    await bf16.load(version)
    request = GenerateRequest("long", text="Once", sampling=Sampling(max_tokens=200, ignore_eos=True))
    stream = bf16.generate(request, version)
    await anext(stream)
    with pytest.raises(Conflict, match="still answers 1"):
        await bf16.unload(str(version.digest))
    await stream.aclose()
    await bf16.unload(str(version.digest))
    before = _memory()
    for _ in range(30):
        await bf16.load(version)
        await bf16.unload(str(version.digest))
    assert str(version.digest) not in await bf16.residency()
    assert _memory() - before < 60 << 20, "30 cycles of a 10 MB adapter"


async def test_pins_leave_one_slot_free_and_need_a_loaded_version(
    bf16: EnginePool, base: BaseFacts, tmp_path: Path
) -> None:
    pinned = [random_version(tmp_path, base, f"pin{n}@1", 90 + n) for n in range(3)]
    with pytest.raises(Conflict, match="not loaded"):
        await bf16.pin(str(pinned[0].digest))
    for version in pinned:
        await bf16.load(version)
    for version in pinned[:2]:
        await bf16.pin(str(version.digest))
    with pytest.raises(Conflict, match="pinned"):
        await bf16.pin(str(pinned[2].digest))
    places = await bf16.residency()
    assert sorted(places[str(version.digest)] for version in pinned) == ["pinned", "pinned", "slot"]


async def test_a_pinned_request_needs_both_a_digest_and_a_path(versions: tuple[Pinned, ...]) -> None:
    with pytest.raises(ValueError, match="both"):
        dataclasses.replace(versions[0], path=None)


async def test_errors_are_of_our_tree(bf16: EnginePool) -> None:
    with pytest.raises(TuneDockError):
        await bf16.chat({"messages": []}, BASE, "empty")


def _memory() -> int:
    """RSS of all processes of this test run, which includes the engine's."""
    me = psutil.Process()
    return sum(process.memory_info().rss for process in (me, *me.children(recursive=True)))
