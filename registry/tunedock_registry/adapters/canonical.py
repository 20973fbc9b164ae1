"""The adapter's configuration: parsed strictly, then written anew. The author's own file never reaches PEFT or vLLM.

PEFT and vLLM hand pattern keys and string targets to `re`; only literal names are taken here. Whatever changes the
meaning of the weights and cannot be served is refused with its reason; whatever only steered training is dropped.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tunedock_api.errors import Rejected
from tunedock_api.manifest import canonical_json

from .strict_json import loads_object

MAX_CONFIG_BYTES = 256 * 2**10
MAX_PATTERN_KEYS = 4_096
_MAX_PATTERN_TESTS = 4_000_000
V = TypeVar("V", int, float)
_LITERAL = re.compile(r"[A-Za-z0-9_.]{1,256}")

# Initialisations that only choose the first values: the saved file is plain LoRA (vllm/lora/peft_helper.py).
_PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica"})

# Keys that `parse_config` reads.
_READ = frozenset(
    {
        "alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern",
        "target_modules", "task_type", "use_rslora",
    }
)  # fmt: skip

# Keys that steer training or say where the file came from. Their values do not change what the tensors mean.
_DROPPED = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules", "inference_mode",
        "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_version",
        "qalora_group_size", "revision",
    }
)  # fmt: skip

# Keys that vLLM refuses or ignores although they change the result; only their neutral value is taken.
_REASONS = {
    "alora_invocation_tokens": "activated LoRA (aLoRA) is not served",
    "arrow_config": "Arrow routing is not served (vLLM would ignore it)",
    "corda_config": "CorDA changes the base weights; convert the adapter to plain LoRA first",
    "fan_in_fan_out": "transposed weights (fan_in_fan_out) are not served",
    "kasa_config": "KaSA is not served",
    "layer_replication": "layer replication is not served",
    "loftq_config": "LoftQ changes the base weights; convert the adapter to plain LoRA first",
    "lora_bias": "LoRA bias is not served",
    "lora_ga_config": "LoRA-GA changes the base weights; convert the adapter to plain LoRA first",
    "megatron_config": "Megatron adapters are not served",
    "modules_to_save": "fully trained modules are not served; train LoRA on linear layers only",
    "target_parameters": "LoRA on fused parameters (mixture of experts) is not served",
    "trainable_token_indices": "trained token embeddings are not served; do not add vocabulary",
    "use_bdlora": "block-diagonal LoRA is not served",
    "use_dora": "DoRA is not served by vLLM; convert the adapter to plain LoRA first",
    "use_qalora": "QALoRA is not served",
}


@dataclass(frozen=True)
class LoraSettings:
    """The parts of `adapter_config.json` that decide what the tensors mean. Patterns keep their order: first match wins."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    use_rslora: bool = False
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    selects_layers: bool = False
    """True when the config excludes modules or layers, so that not every targeted module needs tensors."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """What applies to one module."""

    rank: int
    alpha: float

    def scaling(self, use_rslora: bool) -> float:
        return self.alpha / (math.sqrt(self.rank) if use_rslora else self.rank)


def parse_config(raw: bytes) -> LoraSettings:
    """Raises Rejected, with the key and the reason, unless this is plain LoRA with literal names."""
    if len(raw) > MAX_CONFIG_BYTES:
        raise Rejected(f"adapter_config.json has {len(raw)} bytes; at most {MAX_CONFIG_BYTES} are taken.")
    config = loads_object(raw, "adapter_config.json")
    settings = LoraSettings(
        rank=_positive_int(config, "r"),
        alpha=_number(config, "lora_alpha"),
        target_modules=_targets(config.get("target_modules")),
        use_rslora=_flag(config, "use_rslora"),
        rank_pattern=_pattern(config, "rank_pattern", _positive_int),
        alpha_pattern=_pattern(config, "alpha_pattern", _number),
        selects_layers=any(not _neutral(config.get(key)) for key in ("exclude_modules", "layers_to_transform")),
    )
    _check_kind(config)
    _check_rest(config)
    return settings


def _check_kind(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise Rejected(f'adapter_config.json: peft_type must be "LORA", not {_show(config.get("peft_type"))}.')
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise Rejected(f'adapter_config.json: task_type must be "CAUSAL_LM", not {_show(config["task_type"])}.')
    if config.get("bias", "none") != "none":
        raise Rejected(
            f'adapter_config.json: bias must be "none", not {_show(config["bias"])}: vLLM serves no LoRA bias.'
        )
    init = config.get("init_lora_weights", True)
    if isinstance(init, bool) or (isinstance(init, str) and init.lower() in _PLAIN_INITS):
        return
    raise Rejected(
        f"adapter_config.json: init_lora_weights {_show(init)} changes the base weights in training; "
        "convert the adapter to plain LoRA first."
    )


def _check_rest(config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if key in _READ or key in _DROPPED or _neutral(value):
            continue
        reason = _REASONS.get(key, "the key is unknown, and an unknown key may change what the weights mean")
        raise Rejected(f"adapter_config.json: {key[:80]} = {_show(value)}: {reason}.")


def _neutral(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _positive_int(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 65_536:
        raise Rejected(f"adapter_config.json: {key} must be a positive whole number, not {_show(value)}.")
    return value


def _number(config: Mapping[str, Any], key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value == 0 or abs(value) > 1e9:
        raise Rejected(f"adapter_config.json: {key} must be a number other than 0, not {_show(value)}.")
    return int(value) if value == int(value) else value


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key, False)
    if value not in (True, False, None) or not isinstance(value, (bool, type(None))):
        raise Rejected(f"adapter_config.json: {key} must be true or false, not {_show(value)}.")
    return bool(value)


def _targets(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or len(value) > 65_536:
        raise Rejected(
            f"adapter_config.json: target_modules must be a list of module names, not {_show(value)}. "
            "Patterns in string form are not taken; PEFT writes 'all-linear' out as a list."
        )
    for name in value:
        _literal(name, "target_modules")
    return tuple(sorted(set(value)))


def _literal(name: Any, key: str) -> str:
    if not isinstance(name, str) or _LITERAL.fullmatch(name) is None:
        raise Rejected(
            f"adapter_config.json: {key} holds {_show(name)}: only literal module names are taken, no patterns."
        )
    return name


def _pattern(
    config: Mapping[str, Any], key: str, read: Callable[[Mapping[str, Any], str], V]
) -> tuple[tuple[str, V], ...]:
    value = config.get(key) or {}
    if not isinstance(value, dict) or len(value) > MAX_PATTERN_KEYS:
        raise Rejected(f"adapter_config.json: {key} must be an object with at most {MAX_PATTERN_KEYS} keys.")
    return tuple((_literal(name, key), read(value, name)) for name in value)


def targeted(settings: LoraSettings, modules: Iterable[str]) -> set[str]:
    """The modules of the base that `target_modules` names, by PEFT's rule: the whole name or its end after a dot."""
    targets = set(settings.target_modules)
    return {module for module in modules if not targets.isdisjoint(_endings(module))}


def _endings(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[begin:]) for begin in range(len(parts))]


def resolve(settings: LoraSettings, modules: Sequence[str]) -> dict[str, Resolved]:
    """Rank and alpha of each module by PEFT's rule, which vLLM shares: a key matches the end of a name, first one wins.

    Raises Rejected when there are so many patterns that the comparison itself would be an attack.
    """
    ranks, alphas = _compile(settings.rank_pattern), _compile(settings.alpha_pattern)
    if (len(ranks) + len(alphas)) * len(modules) > _MAX_PATTERN_TESTS:
        raise Rejected("adapter_config.json: rank_pattern and alpha_pattern have too many keys for this many modules.")
    return {
        module: Resolved(_first(ranks, module, settings.rank), _first(alphas, module, settings.alpha))
        for module in modules
    }


def _compile(pattern: Iterable[tuple[str, V]]) -> list[tuple[re.Pattern[str], V]]:
    return [(re.compile(rf"(.*\.)?({key})$"), value) for key, value in pattern]


def _first(pattern: list[tuple[re.Pattern[str], V]], module: str, default: V) -> V:
    return next((value for regex, value in pattern if regex.match(module)), default)


def canonical_config(settings: LoraSettings, used: Sequence[str], base_modules: Iterable[str], base_id: str) -> bytes:
    """The config that is published: what PEFT and vLLM resolve from it for the `used` modules is what `settings` says.

    Raises Rejected when the literal patterns cannot be written down without ambiguity.
    """
    resolved = resolve(settings, used)
    rank, rank_pattern = _as_pattern({module: item.rank for module, item in resolved.items()})
    alpha, alpha_pattern = _as_pattern({module: item.alpha for module, item in resolved.items()})
    raw = canonical_json(
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "auto_mapping": None,
            "base_model_name_or_path": base_id,
            "inference_mode": True,
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": rank_pattern,
            "alpha_pattern": alpha_pattern,
            "use_rslora": settings.use_rslora,
            "target_modules": _canonical_targets(used, base_modules),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "modules_to_save": None,
            "use_dora": False,
        }
    )
    if resolve(parse_config(raw), used) != resolved:
        raise Rejected("adapter_config.json: rank_pattern or alpha_pattern names modules ambiguously; use full names.")
    return raw


def _as_pattern(values: Mapping[str, V]) -> tuple[V, dict[str, V]]:
    """The commonest value, and the exceptions: by last name part where that part always means the same, else in full."""
    default = Counter(values.values()).most_common(1)[0][0]
    by_leaf: dict[str, set[V]] = {}
    for module, value in values.items():
        by_leaf.setdefault(_leaf(module), set()).add(value)
    exceptions = {module: value for module, value in values.items() if value != default}
    return default, {
        _leaf(module) if len(by_leaf[_leaf(module)]) == 1 else module: value for module, value in exceptions.items()
    }


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _canonical_targets(used: Sequence[str], base_modules: Iterable[str]) -> list[str]:
    """Last name parts when they select exactly the modules that have tensors, else the full names."""
    leaves = {_leaf(module) for module in used}
    selected = {module for module in base_modules if _leaf(module) in leaves}
    return sorted(leaves if selected == set(used) else used)
