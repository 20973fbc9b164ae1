"""Base and adapter rows in one batch, all slots filled: every row is answered as if it were alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from support.engine import MODEL_ID
from transformers import AutoModelForCausalLM
from tunedock_server.pool import EnginePool, GenerateRequest, Pinned, Sampling, Scores

BASE = Pinned(MODEL_ID)
PROMPT_IDS = ([504, 3575, 282, 4649, 314], [9690, 198, 2683, 359, 253, 5356, 5646], [33, 28, 216, 34, 28, 216, 35])
PROMPTS = (
    "The capital of France is",
    "Write one sentence about the sea and the people who live beside it all year round:",
    "1, 2, 3, 4,",
    "Once upon a time there was a small dog who wanted to learn how to read. Every morning it walked to the library",
)

# In bf16 the shape of a batch decides which kernels run and so moves the last bits; a strong adapter amplifies them.
# Measured over the tokens of 12 texts on 2 cores with AVX-512 BF16, mean and largest in nats: 0.031 and 0.48 to the solo
# run, 0.040 and 0.49 to transformers + PEFT. In float32 they agree to 1e-3.
MEAN_TOLERANCE, MAX_TOLERANCE = 0.07, 1.0
FLOAT32_TOLERANCE = 2e-3


async def _greedy(engine: EnginePool, name: str, prompt: str, pinned: Pinned, delay_s: float = 0.0) -> tuple[int, ...]:
    await asyncio.sleep(delay_s)
    sampling = Sampling(max_tokens=20, temperature=0.0, ignore_eos=True)
    deltas = engine.generate(GenerateRequest(name, text=prompt, sampling=sampling), pinned)
    return tuple([token async for delta in deltas for token in delta.token_ids])


async def test_in_float32_every_row_gets_the_tokens_of_its_solo_run(
    float32: EnginePool, versions: tuple[Pinned, ...]
) -> None:
    """Rows arrive staggered, so that the prefill of some runs in the steps that decode the others."""
    order = (BASE, versions[0], BASE, versions[1], versions[2], BASE, versions[2], versions[0])
    rows = [(f"row{i}", PROMPTS[i % len(PROMPTS)], pinned) for i, pinned in enumerate(order)]
    together = await asyncio.gather(*(_greedy(float32, *row, delay_s=0.02 * i) for i, row in enumerate(rows)))
    for row, mixed in zip(rows, together, strict=True):
        assert mixed == await _greedy(float32, f"solo-{row[0]}", row[1], row[2]), row[0]
    plain = {prompt: await _greedy(float32, f"plain-{prompt}", prompt, BASE) for prompt in PROMPTS}
    changed = sum(mixed != plain[row[1]] for row, mixed in zip(rows, together, strict=True))
    assert changed >= 3, "adapters must change answers, or the test proves nothing"


async def test_in_float32_log_probabilities_of_a_mixed_batch_are_those_of_peft(
    float32: EnginePool, versions: tuple[Pinned, ...], base_model: Path
) -> None:
    runs = [(pinned, await _text(float32, i, pinned)) for i, pinned in enumerate((BASE, *versions))]
    together = await asyncio.gather(*(float32.score(text, pinned) for pinned, text in runs))
    reference = _peft_logprobs(base_model, versions, runs, torch.float32)
    for mixed, expected in zip(together, reference, strict=True):
        assert (torch.tensor(mixed.logprobs) - expected).abs().max() <= FLOAT32_TOLERANCE


async def test_in_bf16_log_probabilities_agree_with_solo_runs_and_with_peft(
    bf16: EnginePool, versions: tuple[Pinned, ...], base_model: Path
) -> None:
    runs = [(pinned, await _text(bf16, i, pinned)) for i, pinned in enumerate((BASE, *versions) * 3)]
    together = await asyncio.gather(*(bf16.score(text, pinned) for pinned, text in runs))
    solo = [await bf16.score(text, pinned) for pinned, text in runs]
    reference = _peft_logprobs(base_model, versions, runs, torch.bfloat16)
    to_solo = _differences(together, [torch.tensor(alone.logprobs) for alone in solo])
    to_peft = _differences(together, reference)
    print(f"to solo {to_solo.mean():.3f} {to_solo.max():.3f}, to PEFT {to_peft.mean():.3f} {to_peft.max():.3f}")
    for difference in (to_solo, to_peft):
        assert difference.mean() <= MEAN_TOLERANCE
        assert difference.max() <= MAX_TOLERANCE


def _differences(scores: list[Scores], expected: list[torch.Tensor]) -> torch.Tensor:
    """|log-probability - expected| of every token of every text."""
    pairs = zip(scores, expected, strict=True)
    return torch.cat([(torch.tensor(one.logprobs) - other).abs() for one, other in pairs])


async def test_versions_differ_from_the_base_by_far_more_than_the_tolerance(
    bf16: EnginePool, versions: tuple[Pinned, ...]
) -> None:
    text = await _text(bf16, 99, BASE)
    plain = torch.tensor((await bf16.score(text, BASE)).logprobs)
    for version in versions:
        change = (torch.tensor((await bf16.score(text, version)).logprobs) - plain).abs()
        assert change.mean() > 2 * MEAN_TOLERANCE


async def _text(engine: EnginePool, number: int, pinned: Pinned) -> list[int]:
    """A prompt with the 20 tokens that the version itself continues it with, so that none is very unlikely."""
    prompt = PROMPT_IDS[number % len(PROMPT_IDS)]
    sampling = Sampling(max_tokens=20, temperature=0.0, ignore_eos=True)
    deltas = engine.generate(GenerateRequest(f"text{number}", token_ids=prompt, sampling=sampling), pinned)
    return [*prompt, *[token async for delta in deltas for token in delta.token_ids]]


def _peft_logprobs(
    model: Path, versions: tuple[Pinned, ...], runs: Sequence[tuple[Pinned, list[int]]], dtype: torch.dtype
) -> list[torch.Tensor]:
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    peft = PeftModel.from_pretrained(plain, str(versions[0].path), adapter_name=versions[0].public.replace("@", "-"))
    for version in versions[1:]:
        peft.load_adapter(str(version.path), adapter_name=version.public.replace("@", "-"))
    peft.eval()
    return [_forward(peft, pinned, text) for pinned, text in runs]


@torch.inference_mode()
def _forward(peft: PeftModel, pinned: Pinned, text: list[int]) -> torch.Tensor:
    ids = torch.tensor([text])
    if pinned.digest is None:
        with peft.disable_adapter():
            logits = peft(ids).logits[0, :-1].float()
    else:
        peft.set_adapter(pinned.public.replace("@", "-"))
        logits = peft(ids).logits[0, :-1].float()
    return torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])[:, 0]
