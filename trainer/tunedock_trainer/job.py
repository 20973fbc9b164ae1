"""From a claimed job to everything that training needs: settings, data, parent, adapter, resumed state."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from tunedock_api.errors import BadInput, NotFound
from tunedock_api.manifest import WEIGHTS_FILE, canonical_json
from tunedock_api.names import parse_ref
from tunedock_registry.data.hyperparameters import DataFacts, resolve
from tunedock_registry.data.knobs import Knobs, Method, parse_knobs, parse_method
from tunedock_registry.data.render import Renderer
from tunedock_registry.records import Claim, JobRecord, VersionRecord
from tunedock_registry.registry import Registry

from .base import Base
from .datasets import JobData, Loader
from .export import read_weights
from .lora import adapted_modules, modules_of
from .sampler import Sampler
from .settings import RunConfig, run_config
from .trainee import Trainee


@dataclass(frozen=True)
class Job:
    """A claimed job, ready to train. `folder` is its run folder; `number` of `num_runs` and `variant` belong to a sweep."""

    claim: Claim
    method: Method
    knobs: Knobs
    config: RunConfig
    hyperparameters: dict[str, Any]
    data: JobData
    parent: VersionRecord | None
    folder: Path
    number: int = 0
    num_runs: int = 1
    variant: dict[str, float] = field(default_factory=dict)

    @property
    def record(self) -> JobRecord:
        return self.claim.job

    @property
    def digest(self) -> str:
        """Of everything that decides the weights: a state of other settings or data is not resumed."""
        said = {"config": self.config.model_dump(mode="json"), "data": self.data.digests}
        parent = self.parent.digest if self.parent else None
        return sha256(canonical_json({**said, "parent": parent})).hexdigest()


def prepare_job(registry: Registry, base: Base, claim: Claim, max_tokens: int) -> Job:
    """Reads and checks everything. Raises BadInput for what the caller has to mend."""
    record = claim.job
    method = parse_method(record.method)
    knobs = parse_knobs(record.knobs)
    parent = find_parent(registry, base, record, knobs)
    limit = base.facts.max_model_len
    renderer = Renderer(base.tokenizer, knobs.chat_template_kwargs, base.stop_token_ids)
    max_length = limit if knobs.max_length == "auto" else min(limit, knobs.max_length)
    data = Loader(registry, renderer, method.type, knobs, max_length, record.seed).load(record)
    resolved = resolve(method, knobs, _facts(base, data, parent))
    config = run_config(record, method.type, knobs, resolved, max_tokens)
    if parent is not None:
        _check_rank(config.lora.rank, parent)
    folder = registry.home.run_dir(record.id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.model_dump_json(indent=2), encoding="utf-8")
    return Job(claim, method, knobs, config, resolved.as_hyperparameters(), data, parent, folder)


def new_trainee(registry: Registry, base: Base, job: Job) -> Trainee:
    """The adapter before its first step: fresh, or its parent."""
    sampler = Sampler(job.data.sources, job.config.batch_size, job.config.seed)
    if job.parent is None:
        return Trainee(base, job.config, adapted_modules(job.config.lora, base.facts), sampler)
    tensors = read_weights(registry.adapters.path(job.parent) / WEIGHTS_FILE)
    trainee = Trainee(base, job.config, modules_of(tensors, job.config.lora), sampler)
    trainee.adapter.load(tensors, folded=True)
    return trainee


def find_parent(registry: Registry, base: Base, job: JobRecord, knobs: Knobs) -> VersionRecord | None:
    """The version that the job continues from: `init_from`, or a `model` that is not the base itself."""
    named = knobs.init_from or (None if job.model == base.facts.identity.id else job.model)
    if named is None:
        return None
    version = _lookup(registry, job.project, named)
    theirs, ours = version.manifest.identity.base_model, base.facts.identity
    if theirs.config_sha256 != ours.config_sha256:
        raise BadInput(
            f"{named} belongs to base model {theirs.id!r}; this trainer has {ours.id!r}.",
            "model_not_available",
            "model",
        )
    return version


def _lookup(registry: Registry, project: str, named: str) -> VersionRecord:
    ref = parse_ref(named)
    if ref is None:
        raise _not_available(named)
    try:
        if ref.version is not None:
            return registry.adapters.version(project, ref.name, ref.version)
        if ref.checkpoint is not None:
            return registry.adapters.by_tag(project, ref.name, ref.checkpoint)
    except NotFound as error:
        raise _not_available(named) from error
    version = registry.adapters.snapshot().resolve(project, ref)
    if version is None:
        raise _not_available(named)
    return registry.adapters.by_id(version.id)


def _not_available(model: str) -> BadInput:
    return BadInput(f"Model {model} is not available for fine-tuning or does not exist.", "model_not_available")


def _facts(base: Base, data: JobData, parent: VersionRecord | None) -> DataFacts:
    text = base.model.config.get_text_config()
    return DataFacts(
        num_examples=sum(source.per_epoch for source in data.sources),
        hidden_size=base.facts.hidden_size,
        model_type=str(text.model_type),
        max_rank=base.facts.max_rank,
        parent_rank=parent.manifest.lora.rank if parent else None,
        parent_alpha=parent.manifest.lora.trained_alpha if parent else None,
        parent_is_supervised=parent is not None and parent.manifest.training.get("objective") == "supervised",
    )


def _check_rank(rank: int, parent: VersionRecord) -> None:
    """A continued adapter keeps its parent's modules and ranks."""
    if rank != parent.manifest.lora.rank:
        raise BadInput(
            f"lora.rank: {rank} differs from rank {parent.manifest.lora.rank} of {parent.ref}, which the job continues.",
            param="tunedock.lora.rank",
        )
