"""What the adapter answers to held-out prompts, greedily: shown as events at checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .linear import Active
from .losses import Item
from .probe import spread
from .rows import Segment, Tokens
from .trainee import Trainee

MAX_NEW_TOKENS = 48
_ALL_ROWS = 1 << 40


@torch.no_grad()
def show_samples(trainee: Trainee, items: Sequence[Item], count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields a line for people and the data: prompt, the data's answer, the adapter's answer."""
    base = trainee.base
    for item in spread(items, count) if count else []:
        prompt, expected = _cut(item.sequences[0])
        written = generate(trainee, prompt, min(MAX_NEW_TOKENS, 2 * len(expected) + 8))
        answer = base.tokenizer.decode(list(written), skip_special_tokens=True)
        data = {
            "step": trainee.step,
            "prompt": base.tokenizer.decode(list(prompt), skip_special_tokens=True),
            "expected": base.tokenizer.decode(list(expected), skip_special_tokens=True),
            "answer": answer,
        }
        yield f"Sample at step {trainee.step}: {answer[:200]}", data


def generate(trainee: Trainee, prompt: Sequence[int], max_new_tokens: int) -> tuple[int, ...]:
    """Greedy token ids after `prompt`, the stop token left out."""
    base = trainee.base
    ids = torch.tensor([list(prompt)], device=base.device)
    everything = Active([trainee.adapter], [Segment(0, 0, _ALL_ROWS)])
    with base.lora.use(everything):
        output = base.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(base.stop_token_ids) or None,
            pad_token_id=base.stop_token_ids[0] if base.stop_token_ids else 0,
        )
    written = output[0, len(prompt) :].tolist()
    stops = [place for place, token in enumerate(written) if token in base.stop_token_ids]
    return tuple(written[: stops[0]] if stops else written)


def _cut(tokens: Tokens) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The prompt before the first trained token, and the first trained stretch."""
    first = next(place for place in range(1, len(tokens)) if tokens.weights[place] > 0)
    end = next((place for place in range(first, len(tokens)) if tokens.weights[place] <= 0), len(tokens))
    return tokens.token_ids[:first], tokens.token_ids[first:end]
