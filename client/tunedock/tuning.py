"""The request body of a fine-tuning job from plain arguments."""

from __future__ import annotations

from typing import Any, Literal

from tunedock_api.names import check_name

from .operations import Json

Method = Literal["supervised", "dpo"]
# Hyperparameters that OpenAI's API knows; everything else is a TuneDock knob and travels under its own key.
_HYPERPARAMETERS = frozenset({"n_epochs", "batch_size", "learning_rate_multiplier", "beta"})
_JOB_FIELDS = frozenset({"suffix", "seed", "metadata", "integrations"})
KNOBS_KEY = "tunedock"
# Short words for two members of the knob `lora`.
_LORA = frozenset({"rank", "alpha"})


def job_body(
    model: str, training_file: str, validation_file: str | None, adapter: str, method: Method, knobs: dict[str, Any]
) -> Json:
    """Sorts `knobs` into where the API expects them. Raises BadInput for an adapter name that is not legal."""
    given = {key: value for key, value in knobs.items() if value is not None}
    hyperparameters = {key: value for key, value in given.items() if key in _HYPERPARAMETERS}
    fields = {key: value for key, value in given.items() if key in _JOB_FIELDS}
    ours = {key: value for key, value in given.items() if key not in _HYPERPARAMETERS | _JOB_FIELDS | _LORA}
    if lora := {key: value for key, value in given.items() if key in _LORA}:
        ours["lora"] = {**ours.get("lora", {}), **lora}
    body = {
        "model": model,
        "training_file": training_file,
        "method": {"type": method, method: {"hyperparameters": hyperparameters}},
        **fields,
        KNOBS_KEY: {"adapter": check_name(adapter, "adapter"), **ours},
    }
    return body | ({"validation_file": validation_file} if validation_file else {})
