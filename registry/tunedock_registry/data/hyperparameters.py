"""What "auto" means. Pure functions; each names the source of its formula."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .knobs import DpoHyperparameters, Knobs, Method

DEFAULT_ALPHA = 32.0
DEFAULT_BETA = 0.1
_DPO_RATE = 1e-5
_DPO_RATE_AFTER_SFT = 5e-6
_OTHER_RATE = 2e-4
_SMALL_HIDDEN = 1024
# Exponents of tinker-cookbook's `hyperparam_utils.get_lr`; other families are not calibrated there.
_RATE_EXPONENTS = {"llama": 0.781, "qwen": 0.0775}


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the formulas look at. `parent_*` describe the version that the job continues from, if any."""

    num_examples: int
    hidden_size: int
    model_type: str
    max_rank: int
    fused_experts: bool = False
    parent_rank: int | None = None
    parent_alpha: float | None = None
    parent_is_supervised: bool = False


@dataclass(frozen=True, slots=True)
class Resolved:
    """A job's numbers with nothing left open. `learning_rate` is the highest one of the schedule."""

    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    learning_rate: float
    rank: int
    alpha: float
    steps_per_epoch: int
    warmup_steps: int
    eval_interval: int
    beta: float | None = None

    @property
    def total_steps(self) -> int:
        return self.n_epochs * self.steps_per_epoch

    def as_hyperparameters(self) -> dict[str, Any]:
        """In the API's names: what replaces "auto" in a running job."""
        values: dict[str, Any] = {
            "n_epochs": self.n_epochs,
            "batch_size": self.batch_size,
            "learning_rate_multiplier": self.learning_rate_multiplier,
        }
        return values | ({} if self.beta is None else {"beta": self.beta})


def resolve(method: Method, knobs: Knobs, facts: DataFacts, *, steps_per_epoch: int | None = None) -> Resolved:
    """Fills in every "auto". `steps_per_epoch` comes from the packing plan when rows hold several examples."""
    asked = method.hyperparameters
    n = max(1, facts.num_examples)
    dpo = isinstance(asked, DpoHyperparameters)
    epochs = asked.n_epochs if asked.n_epochs != "auto" else (1 if dpo else auto_epochs(n))
    batch = min(n, asked.batch_size) if asked.batch_size != "auto" else auto_batch_size(n, epochs)
    multiplier = 1.0 if asked.learning_rate_multiplier == "auto" else float(asked.learning_rate_multiplier)
    base = dpo_rate(facts.parent_is_supervised) if dpo else base_rate(facts.hidden_size, facts.model_type)
    per_epoch = steps_per_epoch or math.ceil(n / batch)
    return Resolved(
        n_epochs=epochs,
        batch_size=batch,
        learning_rate_multiplier=multiplier,
        learning_rate=base * multiplier,
        rank=_rank(knobs, facts, dpo),
        alpha=_alpha(knobs, facts),
        steps_per_epoch=per_epoch,
        warmup_steps=warmup_steps(epochs * per_epoch, knobs.schedule.warmup_ratio),
        eval_interval=eval_interval(epochs * per_epoch),
        beta=_beta(asked) if isinstance(asked, DpoHyperparameters) else None,
    )


def auto_epochs(num_examples: int) -> int:
    """openai-cookbook, Chat_finetuning_data_prep: three epochs, within 100 to 25 000 shown examples."""
    n = max(1, num_examples)
    if 3 * n < 100:
        return min(25, 100 // n)
    if 3 * n > 25_000:
        return max(1, 25_000 // n)
    return 3


def auto_batch_size(num_examples: int, n_epochs: int) -> int:
    """The largest of 32, 16 and 8 that leaves 100 optimizer steps, at most all examples (LoRA dislikes large ones)."""
    n = max(1, num_examples)
    for size in (32, 16):
        if n_epochs * math.ceil(n / size) >= 100:
            return size
    return min(8, n)


def base_rate(hidden_size: int, model_type: str) -> float:
    """5e-4 * (2000 / hidden)^p within 1e-4 to 4e-4 (tinker-cookbook, alpha 32); 2e-4 for other families (Unsloth).

    Below hidden size 1024 the ceiling is 2e-3: at 576 (135 M parameters, 360 examples) one epoch at the formula's 1.3e-3
    reached a validation loss of 0.076 and at 4e-4 one of 0.135; two epochs 0.057 and 0.083.
    """
    exponent = next((p for family, p in _RATE_EXPONENTS.items() if model_type.startswith(family)), None)
    if exponent is None:
        return _OTHER_RATE
    scaled: float = 5e-4 * (2000 / hidden_size) ** exponent
    ceiling = 4e-4 if hidden_size >= _SMALL_HIDDEN else 2e-3
    return min(ceiling, max(1e-4, scaled))


def dpo_rate(after_supervised: bool) -> float:
    return _DPO_RATE_AFTER_SFT if after_supervised else _DPO_RATE


def auto_rank(num_examples: int, max_rank: int, *, fused_experts: bool = False) -> int:
    """16, 32 from 1 000 examples, 64 above 50 000; never above the engine's cap (half of it where PEFT doubles r)."""
    wanted = 16 if num_examples < 1_000 else 32 if num_examples <= 50_000 else 64
    return max(1, min(wanted, max_rank // 2 if fused_experts else max_rank))


def warmup_steps(total_steps: int, ratio: float) -> int:
    return math.ceil(ratio * total_steps)


def eval_interval(total_steps: int) -> int:
    """Steps between two looks at a validation batch: at most twenty in a job, for each costs a third of a step."""
    return max(1, math.ceil(total_steps / 20))


def _rank(knobs: Knobs, facts: DataFacts, dpo: bool) -> int:
    if knobs.lora.rank != "auto":
        return knobs.lora.rank
    if facts.parent_rank is not None:
        return facts.parent_rank
    num_examples = 0 if dpo else facts.num_examples
    return auto_rank(num_examples, facts.max_rank, fused_experts=facts.fused_experts)


def _alpha(knobs: Knobs, facts: DataFacts) -> float:
    if knobs.lora.alpha != "auto":
        return float(knobs.lora.alpha)
    return facts.parent_alpha if facts.parent_alpha is not None else DEFAULT_ALPHA


def _beta(asked: DpoHyperparameters) -> float:
    return DEFAULT_BETA if asked.beta == "auto" else float(asked.beta)
