"""Is a golden probe something that the engine can replay?"""

from __future__ import annotations

import math
from collections.abc import Iterable

from tunedock_api.errors import Rejected
from tunedock_api.manifest import Probe, ProbeExample

from ..models.facts import BaseFacts

MAX_EXAMPLES = 64


def check_probe(probe: Probe, base: BaseFacts) -> None:
    """Raises Rejected unless lengths agree, tokens exist in the vocabulary and log-probabilities are such."""
    if not 1 <= len(probe.examples) <= MAX_EXAMPLES:
        raise Rejected(f"The probe has {len(probe.examples)} examples; 1 to {MAX_EXAMPLES} are taken.")
    for number, example in enumerate(probe.examples):
        _check_example(example, number, base)


def _check_example(example: ProbeExample, number: int, base: BaseFacts) -> None:
    count = len(example.token_ids) - example.start
    lengths = {len(example.adapter_logprobs), len(example.base_logprobs), len(example.adapter_top1)}
    if count < 1 or lengths != {count}:
        raise Rejected(
            f"Probe example {number}: {count} scored positions, but the lists have lengths {sorted(lengths)}."
        )
    if len(example.token_ids) > base.max_model_len:
        raise Rejected(
            f"Probe example {number}: {len(example.token_ids)} tokens exceed the context of {base.max_model_len}."
        )
    if not _tokens_exist([*example.token_ids, *example.adapter_top1], base.vocab_size):
        raise Rejected(f"Probe example {number}: a token id is outside the vocabulary of {base.vocab_size}.")
    if not all(math.isfinite(value) and value <= 1e-3 for value in (*example.adapter_logprobs, *example.base_logprobs)):
        raise Rejected(f"Probe example {number}: a log-probability is positive, NaN or infinite.")


def _tokens_exist(token_ids: Iterable[int], vocab_size: int) -> bool:
    return all(0 <= token < vocab_size for token in token_ids)
