"""Records as the API shows them: OpenAI's objects with every key that its client types as required, and our own. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from tunedock_registry.keys import KeyRecord
from tunedock_registry.permissions import PermissionRecord
from tunedock_registry.records import (
    AdapterRecord,
    AliasRecord,
    CheckpointRecord,
    EventRecord,
    FileRecord,
    HistoryRecord,
    JobRecord,
    Page,
    PartRecord,
    ReadyVersion,
    Target,
    UploadRecord,
    VersionRecord,
)
from tunedock_registry.webhooks import EndpointRecord

from ..pool import Residency

T = TypeVar("T")
Json = dict[str, Any]
OPEN_STATES = ("published", "verifying")
HYPERPARAMETERS = ("batch_size", "learning_rate_multiplier", "n_epochs")


def listing(page: Page[T], show: Callable[[T], Json]) -> Json:
    """OpenAI's list envelope; the next page starts `after` the last item's id."""
    data = [show(item) for item in page.items]
    ids = [item.get("id") for item in data]
    return {
        "object": "list",
        "data": data,
        "has_more": page.has_more,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
    }


def deleted(identifier: str, kind: str) -> Json:
    return {"id": identifier, "object": kind, "deleted": True}


def file(record: FileRecord) -> Json:
    shown: Json = {
        "id": record.id,
        "object": "file",
        "bytes": record.size_bytes,
        "created_at": record.created_at,
        "filename": record.filename,
        "purpose": record.purpose,
        "status": record.status,
        "status_details": record.status_details,
    }
    return shown | ({"expires_at": record.expires_at} if record.expires_at is not None else {})


def upload(record: UploadRecord) -> Json:
    return {
        "id": record.id,
        "object": "upload",
        "bytes": record.size_bytes,
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "filename": record.filename,
        "purpose": record.purpose,
        "status": record.status,
        "file": None if record.file is None else file(record.file),
    }


def part(record: PartRecord) -> Json:
    return {
        "id": record.id,
        "object": "upload.part",
        "created_at": record.created_at,
        "upload_id": record.upload_id,
    }


def endpoint(record: EndpointRecord) -> Json:
    return {
        "id": record.id,
        "object": "webhook_endpoint",
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        "name": record.name,
        "url": record.url,
        "event_types": list(record.event_types),
        "signing_secret_hint": record.signing_secret_hint,
    }


def permission(record: PermissionRecord) -> Json:
    return {
        "id": record.id,
        "object": "checkpoint.permission",
        "created_at": record.created_at,
        "project_id": record.project_id,
    }


def key(record: KeyRecord) -> Json:
    return {
        "id": record.id,
        "object": "api_key",
        "project": record.project,
        "name": record.name,
        "prefix": record.prefix,
        "scopes": list(record.scopes),
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "revoked_at": record.revoked_at,
    }


def public_status(job: JobRecord, version: VersionRecord | None) -> tuple[str, Json | None]:
    """(status, error) as callers see them.

    The registry calls a job `succeeded` when its version is published. For the caller it is still `running` until the
    gate has let the version pass, and `failed` when the gate has not.
    """
    if job.status != "succeeded" or version is None:
        return job.status, job.error
    if version.state in OPEN_STATES:
        return "running", None
    if version.state == "rejected":
        message = f"The publish gate rejected {version.ref}: {version.reason or 'no reason was recorded'}"
        return "failed", {"code": "adapter_rejected", "message": message, "param": None}
    return "succeeded", None


def job(record: JobRecord, version: VersionRecord | None, project: str) -> Json:
    status, error = public_status(record, version)
    done = status in ("succeeded", "failed", "cancelled")
    return {
        "id": record.id,
        "object": "fine_tuning.job",
        "created_at": record.created_at,
        "finished_at": record.finished_at if done else None,
        "error": error,
        "fine_tuned_model": record.fine_tuned_model if status == "succeeded" else None,
        "hyperparameters": {name: record.hyperparameters.get(name, "auto") for name in HYPERPARAMETERS},
        "method": record.method,
        "model": record.model,
        "organization_id": project,
        "training_file": record.training_file,
        "validation_file": record.validation_file,
        "result_files": record.result_files if done else [],
        "seed": record.seed,
        "status": status,
        "trained_tokens": record.trained_tokens if done else None,
        "estimated_finish": None if done else record.estimated_finish,
        "integrations": record.integrations,
        "metadata": record.metadata,
        "user_provided_suffix": record.suffix,
        "adapter": record.adapter,
        "tunedock": record.knobs,
    }


def event(record: EventRecord) -> Json:
    return {
        "id": record.id,
        "object": "fine_tuning.job.event",
        "created_at": record.created_at,
        "level": record.level,
        "message": record.message,
        "type": record.type,
        "data": record.data,
    }


def checkpoint(record: CheckpointRecord) -> Json:
    return {
        "id": record.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": record.created_at,
        "fine_tuned_model_checkpoint": record.fine_tuned_model_checkpoint,
        "fine_tuning_job_id": record.job_id,
        "step_number": record.step_number,
        "metrics": record.metrics,
    }


def base_model(model_id: str, created: int) -> Json:
    return _model(model_id, created, "tunedock") | {"root": model_id, "parent": None}


def adapter_model(version: ReadyVersion, name: str | None = None) -> Json:
    """A version under its own reference, or under `name` (an alias)."""
    shown = _model(name or version.ref, version.created_at, version.project)
    return shown | {"root": version.ref, "parent": version.base_model, "digest": version.digest}


def _model(model_id: str, created: int, owner: str) -> Json:
    return {"id": model_id, "object": "model", "created": created, "owned_by": owner, "shutdown_date": None}


def version(record: VersionRecord, residency: Residency | str) -> Json:
    """`residency`: stored, host, slot, pinned or failed."""
    lineage = record.manifest.lineage.model_dump(mode="json")
    return {
        "id": record.ref,
        "object": "adapter.version",
        "name": record.adapter,
        "version": record.number,
        "tag": record.tag,
        "ref": record.ref,
        "digest": record.digest,
        "state": record.state,
        "reason": record.reason,
        "base_model": record.base_model,
        "rank": record.rank,
        "size_bytes": record.size_bytes,
        "residency": residency,
        "pinned": record.pinned,
        "parity": record.parity,
        "metrics": record.metrics,
        "origin": record.origin,
        "lineage": lineage,
        "serving": record.manifest.identity.serving.model_dump(mode="json"),
        "job_id": record.job_id,
        "created_at": record.created_at,
    }


def adapter(record: AdapterRecord, aliases: Iterable[AliasRecord]) -> Json:
    return {
        "id": record.name,
        "object": "adapter",
        "name": record.name,
        "base_model": record.base_model,
        "created_at": record.created_at,
        "latest_version": record.latest,
        "num_versions": record.latest or 0,
        "aliases": [alias(one) for one in aliases],
    }


def alias(record: AliasRecord) -> Json:
    return {
        "object": "adapter.alias",
        "name": record.adapter,
        "alias": record.alias,
        "targets": _targets(record.targets),
        "revision": record.revision,
        "updated_at": record.updated_at,
    }


def history(record: HistoryRecord) -> Json:
    return {
        "id": record.id,
        "object": "adapter.history",
        "alias": record.alias,
        "before": None if record.before is None else _targets(record.before),
        "targets": _targets(record.after),
        "revision": record.revision,
        "actor": record.actor,
        "reason": record.reason,
        "created_at": record.created_at,
    }


def _targets(targets: Iterable[Target]) -> list[Json]:
    return [{"version": target.version, "weight": target.weight} for target in targets]


def metadata_filter(query: Mapping[str, str]) -> tuple[dict[str, str], bool]:
    """`metadata[k]=v` pairs of a query, and whether it asks for jobs without metadata (`metadata=null`)."""
    pairs = {key[9:-1]: value for key, value in query.items() if key.startswith("metadata[") and key.endswith("]")}
    return pairs, query.get("metadata") == "null"
