"""From a job's LoRA settings to the rank and scaling of each module, by the rules that PEFT and vLLM share."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor
from tunedock_api.errors import BadInput
from tunedock_registry.adapters.canonical import LoraSettings, resolve, targeted
from tunedock_registry.models.facts import BaseFacts

from .adapter import ModuleLora
from .settings import LoraConfig


def adapted_modules(config: LoraConfig, base: BaseFacts) -> tuple[ModuleLora, ...]:
    """The modules that get an adapter, by name. Raises BadInput when a target names nothing or a rank is too high."""
    leaves = config.target_modules or tuple(sorted({name.rpartition(".")[2] for name in base.modules}))
    settings = LoraSettings(
        rank=config.rank,
        alpha=config.alpha,
        target_modules=leaves,
        use_rslora=config.rslora,
        rank_pattern=tuple(config.rank_pattern.items()),
        alpha_pattern=tuple(config.alpha_pattern.items()),
    )
    for leaf in leaves:
        _check_target(leaf, settings, base)
    names = sorted(targeted(settings, base.modules))
    modules = [
        ModuleLora(name, *base.modules[name], rank=one.rank, scaling=one.scaling(config.rslora))
        for name, one in resolve(settings, names).items()
    ]
    _check_rank(max(module.rank for module in modules), base)
    return tuple(modules)


def modules_of(tensors: Mapping[str, tuple[Tensor, Tensor]], config: LoraConfig) -> tuple[ModuleLora, ...]:
    """The modules of a version that is continued, with its own ranks; `config` gives the scaling they train with."""
    root = math.sqrt if config.rslora else float
    return tuple(
        ModuleLora(name, a.shape[1], b.shape[0], rank=a.shape[0], scaling=config.alpha / root(a.shape[0]))
        for name, (a, b) in sorted(tensors.items())
    )


def _check_target(leaf: str, settings: LoraSettings, base: BaseFacts) -> None:
    only = LoraSettings(rank=settings.rank, alpha=settings.alpha, target_modules=(leaf,))
    if not targeted(only, base.modules):
        known = ", ".join(sorted({name.rpartition(".")[2] for name in base.modules}))
        raise BadInput(
            f"lora.target_modules: {leaf[:80]!r} is no linear module of {base.identity.id!r}; it has {known}.",
            "unservable_lora",
            "tunedock.lora.target_modules",
        )


def _check_rank(rank: int, base: BaseFacts) -> None:
    if rank > base.max_rank:
        raise BadInput(
            f"lora.rank: {rank} exceeds the engine's cap of {base.max_rank}.", "unservable_lora", "tunedock.lora.rank"
        )
