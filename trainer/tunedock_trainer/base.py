"""The frozen base model: loaded once, patched for LoRA, kept in memory between jobs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tunedock_api.errors import BadInput
from tunedock_registry.data.render import Tokenizer
from tunedock_registry.models.facts import BaseFacts, base_facts
from tunedock_registry.processor import multiplies_bfloat16

from . import attention
from .adapter import Adapter
from .grouping import find_groups
from .head import Head, Scored, score
from .linear import Active, LoraModel
from .mlp import patch_mlps
from .norms import patch_norms
from .rows import Layout, Pass, Tokens, build_pass

log = logging.getLogger(__name__)

_TOLERANCE = 0.1
"""Mean difference of log-probabilities, in nats, that bf16 rounding explains; another output layer gives whole nats."""


@dataclass(frozen=True)
class Base:
    """`groups` are the names of linear modules that read one tensor; `packs` says whether examples may share a row. Passes
    compute in `dtype`; adapters are exported in `served_dtype`, which is the same but where bfloat16 is slow."""

    path: Path
    facts: BaseFacts
    model: Any
    tokenizer: Tokenizer
    stop_token_ids: tuple[int, ...]
    lora: LoraModel
    groups: tuple[tuple[str, ...], ...]
    head: Head
    packs: bool
    dtype: torch.dtype
    served_dtype: torch.dtype
    device: torch.device

    def layout(self, packing: bool) -> Layout:
        return "packed" if packing and self.packs else "padded"

    def new_pass(self, examples: Sequence[Tokens], *, packing: bool = True, adapters: Sequence[int] = ()) -> Pass:
        return build_pass(examples, layout=self.layout(packing), adapters=adapters or None, device=self.device)

    @contextmanager
    def running(
        self,
        rows: Pass,
        adapters: Sequence[Adapter] = (),
        *,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Iterator[None]:
        """Forward and backward of `rows` belong inside; without adapters the base answers."""
        active = Active(adapters, rows.segments if adapters else (), dropout, generator)
        attention.PACKED.gathers = rows.gathers
        try:
            with self.lora.use(active):
                yield
        finally:
            attention.PACKED.gathers = []

    def hidden(self, rows: Pass) -> Tensor:
        """Last hidden states of all tokens, flattened: [N, D]. Call it inside `running`."""
        output = self.model.base_model(
            input_ids=rows.input_ids,
            position_ids=rows.position_ids,
            attention_mask=rows.attention_mask,
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden.reshape(-1, hidden.shape[-1])

    def scores(self, rows: Pass) -> Scored:
        """Log-probabilities at the labelled positions of `rows`. Call it inside `running`."""
        return score(self.hidden(rows)[rows.label_rows_M], rows.labels.labels_M, self.head)


def load_base(path: Path, model_id: str, *, max_rank: int, dtype: torch.dtype | None = None) -> Base:
    """Loads the model in `path` onto the GPU when there is one, in bfloat16 unless `dtype` is given or this processor is
    faster in float32. Raises BadInput for a model that cannot be tuned."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    attention.register()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    served_dtype = dtype or torch.bfloat16
    dtype = dtype or _compute_dtype(device)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=attention.NAME)
    model = model.to(device).eval().requires_grad_(False)
    patch_norms(model)
    patch_mlps(model)
    facts = base_facts(path, model_id, max_rank)
    groups = _groups(model, facts, device)
    base = Base(
        path=path,
        facts=facts,
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(path),
        stop_token_ids=_stop_ids(model),
        lora=LoraModel(model, groups),
        groups=groups,
        head=_head(model),
        packs=True,
        dtype=dtype,
        served_dtype=served_dtype,
        device=device,
    )
    return _checked(base)


def _compute_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" or multiplies_bfloat16() else torch.float32


def _groups(model: Any, facts: BaseFacts, device: torch.device) -> tuple[tuple[str, ...], ...]:
    ids = torch.tensor([[1, 2, 3]], device=device)
    groups = find_groups(model, facts.modules.keys(), lambda: model.base_model(input_ids=ids, use_cache=False))
    reached = {name for group in groups for name in group}
    if reached != facts.modules.keys():
        odd = sorted(facts.modules.keys() - reached)
        log.warning("%d linear modules are not used by a forward pass, for example %s", len(odd), odd[0])
    return tuple(groups)


def _stop_ids(model: Any) -> tuple[int, ...]:
    config = getattr(model, "generation_config", None)
    ids = getattr(config, "eos_token_id", None)
    return tuple(ids) if isinstance(ids, list) else (ids,) if ids is not None else ()


def _head(model: Any) -> Head:
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        raise BadInput("The base model has no linear output layer; it cannot be tuned.", "model_not_available")
    config = model.config.get_text_config()
    divisor = getattr(config, "logits_scaling", None)
    factor = getattr(config, "logit_scale", None)
    scale = 1 / divisor if divisor else factor or 1.0
    return Head(layer.weight, layer.bias, float(scale), getattr(config, "final_logit_softcapping", None))


def _checked(base: Base) -> Base:
    """Compares our way through the model with the model's own. Raises BadInput when the output layer does more than we
    know; falls back to padded rows when packed examples see each other (models with state beside attention)."""
    first, second, other = (
        Tokens(tuple(ids), (1.0,) * len(ids)) for ids in (range(100, 112), range(200, 207), range(300, 307))
    )
    with torch.no_grad():
        own = torch.cat([_model_logprobs(base, example.token_ids) for example in (first, second)])
        if _differs(_ours(base, [first, second], packing=False), own):
            raise BadInput(
                "The base model's output layer is of a kind that cannot be tuned here.", "model_not_available"
            )
        packed, changed = (_ours(base, [first, example], packing=True) for example in (second, other))
        swapped = _ours(base, [other, first], packing=True), _ours(base, [second, first], packing=True)
    leaks = not torch.equal(packed[:11], changed[:11]) or not torch.equal(swapped[0][6:], swapped[1][6:])
    if not leaks and not _differs(packed, own):
        return base
    log.warning("examples cannot share a row in this model: rows are padded instead")
    return replace(base, packs=False)


def _differs(ours: Tensor, own: Tensor) -> bool:
    return float((ours - own).abs().mean()) > _TOLERANCE + 0.05 * float(own.abs().mean())


def _model_logprobs(base: Base, token_ids: tuple[int, ...]) -> Tensor:
    ids = torch.tensor([token_ids], device=base.device)
    logits = base.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    picked: Tensor = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return picked


def _ours(base: Base, examples: Sequence[Tokens], *, packing: bool) -> Tensor:
    rows = base.new_pass(examples, packing=packing)
    with base.running(rows):
        return base.scores(rows).logprobs_M
