"""What travels with a version: the manifest, the golden probe and the serving profile.

`manifest.json` lies beside the two PEFT files in `adapters/sha256-<digest>/`. A version's identity is the sha256 of
`Identity` in canonical JSON: the two files, the base model they belong to and the serving profile. Everything else in
the manifest (lineage, probe, how it was trained) describes the version and is not part of its identity.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MANIFEST_FILE = "manifest.json"


class Frozen(BaseModel):
    """Frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseModelIdentity(Frozen):
    """Which base the adapter belongs to. Digests are sha256 hex; `chat_template` is of the template's text."""

    id: str
    config_sha256: str
    tokenizer_sha256: str
    chat_template_sha256: str


class ServingProfile(Frozen):
    """Defaults that the gateway applies to requests for this version; a request's own fields win."""

    system_prompt: str | None = Field(default=None, max_length=65_536)
    sampling: dict[str, float | int] = Field(default_factory=dict)
    stop: tuple[str, ...] = Field(default=(), max_length=16)
    chat_template_kwargs: dict[str, bool | int | str] = Field(default_factory=dict)


class ProbeExample(Frozen):
    """One held-out example, as token ids, with log-probabilities in nats of positions `start:` given what is before.

    `len(adapter_logprobs) == len(base_logprobs) == len(adapter_top1) == len(token_ids) - start`.
    """

    token_ids: tuple[int, ...]
    start: int = Field(ge=1)
    adapter_logprobs: tuple[float, ...]
    base_logprobs: tuple[float, ...]
    adapter_top1: tuple[int, ...]


class Probe(Frozen):
    """What the trainer's own forward pass said, in `dtype`, with the *exported* weights."""

    dtype: str
    examples: tuple[ProbeExample, ...]


class FileEntry(Frozen):
    sha256: str
    size_bytes: int = Field(ge=0)


class Identity(Frozen):
    """The hashed part of the manifest."""

    files: dict[str, FileEntry]
    base_model: BaseModelIdentity
    serving: ServingProfile = ServingProfile()

    def digest(self) -> str:
        """sha256 hex of the canonical JSON of this identity."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()


class Lineage(Frozen):
    """Where a version comes from. `parents` are public references such as `support@3`."""

    origin: Literal["trained", "imported", "merged", "converted", "checkpoint"]
    job_id: str | None = None
    step: int | None = None
    parents: tuple[str, ...] = ()
    datasets: dict[str, str] = Field(default_factory=dict, description="file id -> sha256")
    seed: int | None = None
    notes: dict[str, Any] = Field(default_factory=dict)


class LoraShape(Frozen):
    """As served: `alpha == rank`, the scaling is folded into B. `trained_*` say what the trainer used."""

    rank: int = Field(ge=1)
    target_modules: tuple[str, ...]
    num_parameters: int = Field(ge=1)
    trained_rank: int | None = None
    trained_alpha: float | None = None
    trained_rslora: bool = False


class Manifest(Frozen):
    """`manifest.json`, format 1."""

    format: Literal[1] = 1
    digest: str
    identity: Identity
    lora: LoraShape
    lineage: Lineage
    probe: Probe | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    packages: dict[str, str] = Field(default_factory=dict)


def canonical_json(value: Any) -> bytes:
    """Sorted keys, no spaces, UTF-8: the bytes that digests are taken of. Raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
