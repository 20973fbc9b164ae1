"""Publishes a version: first its folder, then one transaction. A crash in between leaves garbage, never a torn version."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session
from tunedock_api.errors import Conflict, Unavailable
from tunedock_api.names import check_name, checkpoint_tag

from .. import idempotency, job_writes
from ..records import Attempt, Claim, JobResult, VersionRecord
from ..tables.adapters import AdapterRow, VersionRow
from ..tables.base import bump
from .intake import PreparedAdapter
from .moving import Moving
from .rows import any_adapter, find_version, load_manifest, ref_of, version_record
from .versions import STORED

_TRIES = 10
_NO_ATTEMPT = Attempt()


@dataclass(frozen=True)
class _Made:
    """The arguments of one publish call."""

    project: str
    name: str
    source: PreparedAdapter
    origin: str
    claim: Claim | None
    result: JobResult | None
    step: int | None
    attempt: Attempt

    @property
    def tag(self) -> str | None:
        return None if self.claim is None or self.step is None else checkpoint_tag(self.claim.job.id, self.step)


class Publishing(Moving):
    def publish(
        self,
        project: str,
        name: str,
        source: PreparedAdapter,
        *,
        origin: str,
        claim: Claim | None = None,
        job_result: JobResult | None = None,
        checkpoint_step: int | None = None,
        attempt: Attempt = _NO_ATTEMPT,
    ) -> VersionRecord:
        """A new version in state `published`; the gate takes it from there.

        With `claim` the version is the job's result, and the job succeeds in the same transaction; with
        `checkpoint_step`, too, it is the job's checkpoint and has a tag instead of a number. Publishing again for the
        same job, checkpoint or idempotency key returns what the first call made.

        Raises Rejected when the source changed since `prepare`; Conflict (`stale_lease`, `idempotency_conflict`);
        Unavailable (`storage_full`, `storage_unavailable`).
        """
        check_name(name, "adapter")
        made = _Made(project, name, source, origin, claim, job_result, checkpoint_step, attempt)
        for _ in range(_TRIES):
            whole = self._folders.place(source)
            with self._db.write() as session:
                if not whole:
                    self._folders.repair(source.digest)
                    continue
                known = _known(session, made, self._clock.now())
                if known is not None:
                    return _record(*find_version(session, known))
                # The collector removes folders inside a write transaction: what is here now stays until ours is done.
                if self._folders.exists(source.digest):
                    return self._insert(session, made)
        raise Unavailable(
            "The adapter's files vanished while it was being published: try again.", "storage_unavailable"
        )

    def _insert(self, session: Session, made: _Made) -> VersionRecord:
        now = self._clock.now()
        adapter = _adapter_for(session, made, now)
        row = _new_row(made, adapter, now)
        session.add(row)
        session.flush()
        self._tell_job(session, made, row, adapter, now)
        idempotency.remember(session, made.project, "version", made.attempt, str(row.seq), now)
        bump(session)
        return version_record(row, adapter, made.source.manifest)

    def _tell_job(self, session: Session, made: _Made, row: VersionRow, adapter: AdapterRow, now: int) -> None:
        if made.claim is None:
            return
        if made.step is None:
            job_writes.succeed(session, made.claim, row.seq, ref_of(row, adapter), made.result, now)
        else:
            job_writes.add_checkpoint(session, made.claim, made.step, row.seq, row.metrics, now)


def _known(session: Session, made: _Made, now: int) -> int | None:
    """The id of the version that an earlier try of this call has made."""
    if made.tag is not None:
        return _with_tag(session, made, made.tag)
    if made.claim is not None:
        return job_writes.result_of(session, made.claim)
    earlier = idempotency.recall(session, made.project, "version", made.attempt, now)
    return None if earlier is None else int(earlier)


def _with_tag(session: Session, made: _Made, tag: str) -> int | None:
    """A resumed job may reach a step again with other last bits. The tag keeps its first meaning."""
    adapter = any_adapter(session, made.project, made.name)
    if adapter is None:
        return None
    query = select(VersionRow.seq).where(VersionRow.adapter_seq == adapter.seq, VersionRow.tag == tag)
    return session.scalar(query)


def _adapter_for(session: Session, made: _Made, now: int) -> AdapterRow:
    """The adapter, made or brought back where needed. Raises Conflict when it belongs to another base model."""
    base_id = made.source.manifest.identity.base_model.id
    row = any_adapter(session, made.project, made.name)
    if row is None:
        row = AdapterRow(project=made.project, name=made.name, base_model=base_id, latest=0, created_at=now)
        session.add(row)
        session.flush()
    if row.base_model != base_id and _has_versions(session, row):
        raise Conflict(
            f"Adapter {made.name!r} belongs to base model {row.base_model!r}, this version to {base_id!r}: publish it "
            "under another name.",
            "invalid_state",
            param="adapter",
        )
    row.base_model, row.deleted_at = base_id, None
    return row


def _has_versions(session: Session, adapter: AdapterRow) -> bool:
    query = select(VersionRow.seq).where(VersionRow.adapter_seq == adapter.seq, VersionRow.state.in_(STORED)).limit(1)
    return session.scalar(query) is not None


def _new_row(made: _Made, adapter: AdapterRow, now: int) -> VersionRow:
    manifest, number = made.source.manifest, None
    if made.tag is None:
        number = adapter.latest = adapter.latest + 1
    return VersionRow(
        adapter_seq=adapter.seq,
        number=number,
        tag=made.tag,
        digest=manifest.digest,
        state="published",
        state_at=now,
        origin=made.origin,
        base_model=manifest.identity.base_model.id,
        rank=manifest.lora.rank,
        size_bytes=made.source.size_bytes,
        manifest=manifest.model_copy(update={"probe": None}).model_dump_json(),
        probe=None if manifest.probe is None else manifest.probe.model_dump_json(),
        parity={},
        metrics={key: value for key, value in manifest.metrics.items() if key != "delta_norms"},
        pinned=False,
        job_id=None if made.claim is None else made.claim.job.id,
        created_at=now,
    )


def _record(row: VersionRow, adapter: AdapterRow) -> VersionRecord:
    return version_record(row, adapter, load_manifest(row, probe=True))
