"""What one run was told, with nothing left open: saved with the run and in the manifest."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from tunedock_api.manifest import Frozen
from tunedock_registry.data.hyperparameters import Resolved
from tunedock_registry.data.knobs import Knobs
from tunedock_registry.records import JobRecord

Objective = Literal["supervised", "dpo"]


class LoraConfig(Frozen):
    """`target_modules` empty means every linear projection of the language model."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    target_modules: tuple[str, ...] = ()
    rslora: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1, description="0 is off")
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)


class OptimConfig(Frozen):
    """`learning_rate` is the highest of the schedule; `max_grad_norm` 0 and `warmup_steps` 0 are off."""

    learning_rate: float = Field(gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(default=0, ge=0)
    final_ratio: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)


class RunConfig(Frozen):
    """One training run. `batch_size` counts examples in one optimizer step, whatever passes it is cut into."""

    objective: Objective = "supervised"
    seed: int = 0
    n_epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    lora: LoraConfig
    optim: OptimConfig
    beta: float = Field(default=0.1, gt=0, description="dpo only")
    eval_interval: int = Field(default=0, ge=0, description="steps between validation batches; 0 is off")
    patience: int = Field(default=0, ge=0, description="epochs without a better validation loss; 0 is off")
    min_delta: float = Field(default=0.0, ge=0)
    packing: bool = True
    max_tokens: int = Field(default=2048, ge=1, description="tokens of one forward pass; longer examples go alone")
    num_samples: int = Field(default=2, ge=0, description="answers shown at each checkpoint; 0 is off")


def run_config(job: JobRecord, objective: Objective, knobs: Knobs, resolved: Resolved, max_tokens: int) -> RunConfig:
    """A job's settings with the formulas' numbers filled in."""
    stopping, targets = knobs.early_stopping, knobs.lora.target_modules
    return RunConfig(
        objective=objective,
        seed=job.seed,
        n_epochs=resolved.n_epochs,
        batch_size=resolved.batch_size,
        lora=LoraConfig(
            rank=resolved.rank,
            alpha=resolved.alpha,
            target_modules=() if targets == "all-linear" else targets,
            rslora=knobs.lora.rslora,
            dropout=knobs.lora.dropout,
            rank_pattern=knobs.lora.rank_pattern,
            alpha_pattern=knobs.lora.alpha_pattern,
        ),
        optim=OptimConfig(
            learning_rate=resolved.learning_rate,
            schedule=knobs.schedule.type,
            warmup_steps=resolved.warmup_steps,
            final_ratio=knobs.schedule.final_ratio,
            weight_decay=knobs.weight_decay,
            max_grad_norm=knobs.max_grad_norm,
        ),
        beta=resolved.beta or 0.1,
        eval_interval=resolved.eval_interval,
        patience=stopping.patience if stopping else 0,
        min_delta=stopping.min_delta if stopping else 0.0,
        packing=knobs.packing is not False,
        max_tokens=max_tokens,
        num_samples=knobs.num_samples,
    )
