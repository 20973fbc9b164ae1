"""From rows to records, and the queries that several parts share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Select, bindparam, select
from sqlalchemy.orm import Session
from tunedock_api.errors import NotFound, model_not_found
from tunedock_api.manifest import Manifest, Probe
from tunedock_api.names import version_ref

from ..records import AdapterRecord, AliasRecord, HistoryRecord, Target, VersionRecord
from ..tables.adapters import AdapterRow, AliasMoveRow, AliasRow, VersionRow
from .aliases import NEW, Move


def targets(value: Sequence[Any]) -> tuple[Target, ...]:
    return tuple(Target(int(version), float(weight)) for version, weight in value)


def target_list(value: Iterable[Target]) -> list[Any]:
    return [[target.version, target.weight] for target in value]


def adapter_record(row: AdapterRow) -> AdapterRecord:
    return AdapterRecord(row.seq, row.project, row.name, row.base_model, row.latest or None, row.created_at)


def alias_record(row: AliasRow, adapter: AdapterRow) -> AliasRecord:
    return AliasRecord(adapter.project, adapter.name, row.alias, targets(row.targets), row.revision, row.updated_at)


def history_record(row: AliasMoveRow, adapter: AdapterRow) -> HistoryRecord:
    before = None if row.before is None else targets(row.before)
    return HistoryRecord(
        row.id, adapter.project, adapter.name, row.alias, before, targets(row.after), row.revision, row.actor,
        row.reason, row.created_at,
    )  # fmt: skip


def move_of(row: AliasRow | None) -> Move:
    return NEW if row is None else Move(targets(row.targets), row.revision, row.undo)


def load_manifest(row: VersionRow, *, probe: bool) -> Manifest:
    """The probe is read from its own column, and only when it is wanted."""
    manifest = _manifest(row.manifest)
    if not probe or row.probe is None:
        return manifest
    return manifest.model_copy(update={"probe": Probe.model_validate_json(row.probe)})


@lru_cache(maxsize=32)
def _manifest(text: str) -> Manifest:
    """On its way to `ready` a version is read a dozen times."""
    return Manifest.model_validate_json(text)


def version_record(row: VersionRow, adapter: AdapterRow, manifest: Manifest) -> VersionRecord:
    return VersionRecord(
        id=row.seq,
        project=adapter.project,
        adapter=adapter.name,
        number=row.number,
        tag=row.tag,
        ref=ref_of(row, adapter),
        digest=row.digest,
        state=row.state,  # type: ignore[arg-type]  # the column holds nothing else
        reason=row.reason,
        origin=row.origin,
        base_model=row.base_model,
        rank=row.rank,
        size_bytes=row.size_bytes,
        manifest=manifest,
        parity=row.parity,
        metrics=row.metrics,
        pinned=row.pinned,
        job_id=row.job_id,
        created_at=row.created_at,
    )


def ref_of(row: VersionRow, adapter: AdapterRow) -> str:
    return version_ref(adapter.name, row.number, row.tag)


def versions_query() -> Select[VersionRow, AdapterRow]:
    return select(VersionRow, AdapterRow).join(AdapterRow, AdapterRow.seq == VersionRow.adapter_seq)


# Made once: they are asked for beside running streams, and making one takes as long as running it.
_NAMED = AdapterRow.project == bindparam("project"), AdapterRow.name == bindparam("name")
_ADAPTER = select(AdapterRow).where(*_NAMED)
_BY_ID = versions_query().where(VersionRow.seq == bindparam("seq"))
_NUMBERED = versions_query().where(*_NAMED, AdapterRow.deleted_at.is_(None), VersionRow.number == bindparam("number"))
_TAGGED = versions_query().where(*_NAMED, AdapterRow.deleted_at.is_(None), VersionRow.tag == bindparam("tag"))


def find_adapter(session: Session, project: str, name: str) -> AdapterRow:
    """Raises NotFound, also for a deleted adapter."""
    row = any_adapter(session, project, name)
    if row is None or row.deleted_at is not None:
        raise NotFound(f"No adapter {name[:80]!r}.", param="adapter")
    return row


def any_adapter(session: Session, project: str, name: str) -> AdapterRow | None:
    return session.scalar(_ADAPTER, {"project": project, "name": name})


def find_version(session: Session, version_id: int) -> tuple[VersionRow, AdapterRow]:
    """Raises NotFound."""
    row = session.execute(_BY_ID, {"seq": version_id}).one_or_none()
    if row is None:
        raise NotFound(f"No version with id {version_id}.", param="version")
    return row.tuple()


def find_numbered(session: Session, project: str, name: str, number: int) -> tuple[VersionRow, AdapterRow]:
    """Raises NotFound (`model_not_found` when the adapter is there)."""
    row = session.execute(_NUMBERED, {"project": project, "name": name, "number": number}).one_or_none()
    if row is None:
        find_adapter(session, project, name)
        raise model_not_found(version_ref(name, number))
    return row.tuple()


def find_tagged(session: Session, project: str, name: str, tag: str) -> tuple[VersionRow, AdapterRow]:
    """Raises NotFound (`model_not_found` when the adapter is there)."""
    row = session.execute(_TAGGED, {"project": project, "name": name, "tag": tag}).one_or_none()
    if row is None:
        find_adapter(session, project, name)
        raise model_not_found(f"{name}@{tag}")
    return row.tuple()


def find_alias(session: Session, adapter: AdapterRow, alias: str) -> AliasRow | None:
    return session.get(AliasRow, (adapter.seq, alias))


def aliases_using(session: Session, row: VersionRow) -> list[str]:
    """The aliases of the adapter that point to this version."""
    rows = session.scalars(select(AliasRow).where(AliasRow.adapter_seq == row.adapter_seq)).all()
    return sorted(alias.alias for alias in rows if row.number in {target.version for target in targets(alias.targets)})
