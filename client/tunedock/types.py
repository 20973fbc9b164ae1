"""What the service answers, as frozen typed values.

Unknown keys are kept (`model_extra`), so that an older client reads a newer server. Times are Unix seconds.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from tunedock_api.names import version_ref

FINAL_STATUSES = frozenset({"succeeded", "failed", "cancelled"})


class Wire(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=(), defer_build=True)


class FileInfo(Wire):
    """An uploaded file. `status_details` says why `status` is `error`."""

    id: str
    filename: str = ""
    bytes: int = 0
    purpose: str = ""
    status: str = "uploaded"
    status_details: str | None = None
    created_at: int = 0


class JobError(Wire):
    code: str = "internal_error"
    message: str = ""
    param: str | None = None


class JobInfo(Wire):
    """A fine-tuning job as it stood when it was read. `fine_tuned_model` is a reference such as `support@7`."""

    id: str
    status: str
    model: str = ""
    created_at: int = 0
    finished_at: int | None = None
    fine_tuned_model: str | None = None
    training_file: str = ""
    validation_file: str | None = None
    trained_tokens: int | None = None
    estimated_finish: int | None = None
    seed: int | None = None
    error: JobError | None = None
    result_files: tuple[str, ...] = ()
    hyperparameters: dict[str, Any] | None = None
    method: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None

    @property
    def finished(self) -> bool:
        return self.status in FINAL_STATUSES


class JobEvent(Wire):
    """One line of a job's log. `data` holds the numbers of a `metrics` event."""

    id: str
    created_at: int = 0
    level: str = "info"
    message: str = ""
    type: str = "message"
    data: dict[str, Any] | None = None


class Metric(Wire):
    """The measurements of one step. Losses are nats per trained token; what was not measured is None."""

    step: int
    total_steps: int | None = None
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None


class Checkpoint(Wire):
    """An intermediate result of a job; `fine_tuned_model_checkpoint` can be used as a model."""

    id: str
    fine_tuned_model_checkpoint: str = ""
    fine_tuning_job_id: str = ""
    step_number: int = 0
    created_at: int = 0
    metrics: dict[str, Any] = Field(default_factory=dict)


class Target(Wire):
    """One destination of an alias; weights are relative to each other."""

    version: int
    weight: float = 1.0


class Alias(Wire):
    """`revision` grows by one with every move; give it as `expected_revision` to lose no race."""

    alias: str
    targets: tuple[Target, ...] = ()
    revision: int = 0

    @property
    def shown(self) -> str:
        """`7`, or `7:90 8:10` when weighted."""
        if len(self.targets) == 1:
            return str(self.targets[0].version)
        return " ".join(f"{target.version}:{target.weight:g}" for target in self.targets)


class Version(Wire):
    """One immutable set of adapter weights. A checkpoint has a `tag` in place of a number.

    `parity` is what the publish gate measured; `residency` says where the weights are in the server that answered.
    """

    name: str
    version: int | None = None
    tag: str | None = None
    digest: str = ""
    state: str = ""
    reason: str | None = None
    base_model: str = ""
    rank: int = 0
    size_bytes: int = 0
    residency: str | None = None
    pinned: bool = False
    origin: str | None = None
    job_id: str | None = None
    created_at: int = 0
    parity: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    lineage: dict[str, Any] | None = None

    @property
    def ref(self) -> str:
        """What to put in `model`: `support@7`."""
        return version_ref(self.name, self.version, self.tag)


class Adapter(Wire):
    """A named line of versions."""

    name: str
    base_model: str = ""
    created_at: int = 0
    latest_version: int | None = None
    num_versions: int = 0
    aliases: tuple[Alias, ...] = ()

    def alias(self, name: str) -> Alias | None:
        return next((alias for alias in self.aliases if alias.alias == name), None)


class HistoryEntry(Wire):
    """One move of an alias: who moved it, when, and why."""

    alias: str = ""
    targets: tuple[Target, ...] = ()
    revision: int = 0
    actor: str = ""
    reason: str = ""
    action: str = ""
    created_at: int = 0


class Key(Wire):
    """An API key. `key` is the secret and there only in the answer that made it; `scopes` say what it may do."""

    id: str
    name: str = ""
    project: str = ""
    scopes: tuple[str, ...] = ()
    created_at: int = 0
    expires_at: int | None = None
    revoked_at: int | None = None
    key: str | None = Field(default=None, repr=False)


class Model(Wire):
    """What can be put in `model`; `parent` names the base of an adapter and is None for the base itself."""

    id: str
    created: int = 0
    owned_by: str = ""
    parent: str | None = None


class Usage(Wire):
    """Token counts of one answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class Reply(Wire):
    """A finished answer. `model` names the exact version that gave it; `raw` is the whole answer in OpenAI's shape."""

    text: str
    model: str
    finish_reason: str | None = None
    usage: Usage = Usage()
    tool_calls: tuple[dict[str, Any], ...] = ()
    raw: dict[str, Any] = Field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return self.text


class Delta(Wire):
    """A piece of a streamed answer. `index` tells apart the answers of `n > 1`; `usage` comes with the last piece."""

    text: str
    model: str
    index: int = 0
    finish_reason: str | None = None
    usage: Usage | None = None
    raw: dict[str, Any] = Field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return self.text
