"""Fine-tuning jobs: check everything before any compute, queue, show. Transport-free."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tunedock_api.errors import BadInput, NotFound, TuneDockError
from tunedock_api.names import is_name
from tunedock_registry.data.formats import job_failure
from tunedock_registry.data.knobs import KNOBS_KEY, Knobs, Method, parse_knobs, parse_method
from tunedock_registry.records import (
    Attempt,
    CheckpointRecord,
    EventRecord,
    FileRecord,
    JobRecord,
    JobSpec,
    Page,
    VersionRecord,
)
from tunedock_registry.registry import Registry

from ..catalog import Catalog
from ..pool import EnginePool
from . import preflight, wire
from .files import FileService, report_of

log = logging.getLogger(__name__)

FILE_WAIT_S = 10.0
MAX_SEED = 2_147_483_647


@dataclass(frozen=True)
class NewJob:
    """A create request whose plain fields are checked. `others` are further top-level keys: knobs, or mistakes."""

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int | None = None
    metadata: dict[str, str] | None = None
    integrations: list[Any] | None = None
    method: Any = None
    hyperparameters: Any = None
    knobs: Any = None
    others: Mapping[str, Any] = field(default_factory=dict)


class JobService:
    """`changed` makes this server see a registry write at once."""

    def __init__(
        self,
        registry: Registry,
        files: FileService,
        catalog: Catalog,
        pool: EnginePool,
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        self._registry = registry
        self._files = files
        self._catalog = catalog
        self._pool = pool
        self._changed = changed

    async def create(self, project: str, new: NewJob, attempt: Attempt) -> wire.Json:
        """Raises BadInput with the field that has to change; Conflict for a reused idempotency key."""
        method = parse_method(new.method, new.hyperparameters)
        knobs = self._continue_from(project, new.model, merged_knobs(new))
        training = await self._usable_file(project, new.training_file, "training_file")
        if new.validation_file is not None:
            await self._usable_file(project, new.validation_file, "validation_file")
        for extra in knobs.mixing:
            await self._usable_file(project, extra, f"{KNOBS_KEY}.mixing.{extra}")
        report = await self._files.report_for(training, knobs.chat_template_kwargs)
        preflight.check(method, knobs, report, self._pool.facts)
        spec = self._spec(new, method, knobs)
        record = await asyncio.to_thread(
            self._registry.jobs.create, project, spec, attempt.key, attempt.body_sha256, attempt.retry
        )
        return await self.show(await asyncio.to_thread(self._validate, record))

    def _continue_from(self, project: str, model: str, knobs: Knobs) -> Knobs:
        """`model` is the base, or a version to continue from; an alias is resolved once, here."""
        if model != self._catalog.base_model:
            knobs = knobs.model_copy(update={"init_from": self._exact(project, model, None)})
        elif knobs.init_from is not None:
            exact = self._exact(project, knobs.init_from, f"{KNOBS_KEY}.init_from")
            knobs = knobs.model_copy(update={"init_from": exact})
        return knobs

    def _exact(self, project: str, model: str, param: str | None) -> str:
        version = self._catalog.version(project, model, sticky_key="")
        if version is None:
            raise BadInput(
                f"Model {model[:200]} is not available for fine-tuning or does not exist.",
                "model_not_available",
                param=param,
            )
        return version.ref

    async def _usable_file(self, project: str, file_id: str, param: str) -> FileRecord:
        try:
            record = await self._files.settled(project, file_id, FILE_WAIT_S)
        except NotFound:
            raise BadInput(f"File '{file_id[:80]}' does not exist.", param=param) from None
        if record.purpose != "fine-tune":
            raise BadInput(
                f"File '{record.id}' has purpose '{record.purpose}': upload it with purpose 'fine-tune'.", param=param
            )
        if record.status == "uploaded":
            raise BadInput(
                f"File '{record.id}' is still being processed and is not ready to be used for fine-tuning. Please try "
                "again later.",
                param=param,
            )
        if record.status == "error":
            raise _broken_file(record, param)
        return record

    def _spec(self, new: NewJob, method: Method, knobs: Knobs) -> JobSpec:
        adapter = knobs.adapter or _name_from(new.suffix)
        if adapter == self._catalog.base_model:
            raise BadInput(f"{adapter!r} is the base model: choose another adapter.", param=f"{KNOBS_KEY}.adapter")
        return JobSpec(
            model=new.model,
            training_file=new.training_file,
            adapter=adapter,
            validation_file=new.validation_file,
            suffix=new.suffix,
            seed=secrets.randbelow(MAX_SEED) if new.seed is None else new.seed,
            method=method.as_body(),
            hyperparameters=method.hyperparameters.model_dump(),
            knobs=knobs.model_dump(mode="json", exclude_unset=True),
            metadata=new.metadata,
            integrations=new.integrations,
        )

    async def recover(self) -> None:
        """Jobs that a crash left between creation and the queue."""
        for record in await asyncio.to_thread(self._registry.jobs.with_status, "validating_files"):
            await asyncio.to_thread(self._validate, record)

    def _validate(self, record: JobRecord) -> JobRecord:
        """Into the queue, or failed with the reason; the files themselves were validated before. Runs in a thread."""
        if record.status != "validating_files":
            return record
        try:
            error = self._file_error(record)
        except TuneDockError as failure:
            error = failure
        if error is None:
            return self._registry.jobs.mark_validated(record.id)
        body = {"code": error.code, "message": error.message, "param": error.param}
        return self._registry.jobs.fail_validation(record.id, body)

    def _file_error(self, record: JobRecord) -> TuneDockError | None:
        for param, file_id in (("training_file", record.training_file), ("validation_file", record.validation_file)):
            if file_id is None:
                continue
            report = report_of(self._registry.files.get(record.project, file_id))
            error = job_failure(report, param) if report is not None else None
            if error is not None:
                return error
        return None

    async def get(self, project: str, job_id: str) -> wire.Json:
        return await self.show(await asyncio.to_thread(self._registry.jobs.get, project, job_id))

    async def list(
        self, project: str, after: str | None, limit: int, metadata: dict[str, str], without_metadata: bool
    ) -> tuple[list[wire.Json], bool]:
        """(jobs, has_more), newest first."""
        page = await asyncio.to_thread(
            self._registry.jobs.list, project, after, limit, metadata or None, without_metadata=without_metadata
        )
        versions = await asyncio.to_thread(self._versions, page.items)
        return [wire.job(job, versions.get(job.version_id or 0), project) for job in page.items], page.has_more

    async def cancel(self, project: str, job_id: str) -> wire.Json:
        """Raises NotFound; BadInput (`invalid_state`) when the job has ended."""
        return await self.show(await asyncio.to_thread(self._registry.jobs.request_cancel, project, job_id))

    async def pause(self, project: str, job_id: str) -> wire.Json:
        return await self.show(await asyncio.to_thread(self._registry.jobs.request_pause, project, job_id))

    async def resume(self, project: str, job_id: str) -> wire.Json:
        return await self.show(await asyncio.to_thread(self._registry.jobs.resume, project, job_id))

    async def events(self, project: str, job_id: str, after: str | None, limit: int) -> Page[EventRecord]:
        return await asyncio.to_thread(self._registry.jobs.events, project, job_id, after, limit)

    async def checkpoints(self, project: str, job_id: str, after: str | None, limit: int) -> Page[CheckpointRecord]:
        return await asyncio.to_thread(self._registry.jobs.checkpoints, project, job_id, after, limit)

    async def plot(self, project: str, job_id: str) -> bytes:
        """A PNG. Raises NotFound also while there is none yet."""
        record = await asyncio.to_thread(self._registry.jobs.get, project, job_id)
        path = self._registry.home.run_dir(record.id) / "plot.png"
        try:
            return await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            raise NotFound(f"{record.id} has no plot yet: it is drawn when training has begun.") from None

    async def show(self, record: JobRecord) -> wire.Json:
        """A job that is shown as succeeded can be asked for at once: the snapshot here knows its version by then."""
        versions = await asyncio.to_thread(self._versions, [record])
        version = versions.get(record.version_id or 0)
        if version is not None and version.state == "ready" and not self._catalog.offers(version):
            await self._changed()
        return wire.job(record, version, record.project)

    def _versions(self, jobs: Iterable[JobRecord]) -> dict[int, VersionRecord]:
        ids = {job.version_id for job in jobs if job.version_id is not None}
        return {version_id: self._registry.adapters.by_id(version_id) for version_id in ids}


def merged_knobs(new: NewJob) -> Knobs:
    """Knobs from the key `tunedock`, and such as stand beside OpenAI's own fields. Raises BadInput for unknown ones."""
    unknown = sorted(new.others.keys() - Knobs.model_fields.keys())
    if unknown:
        raise BadInput(f"Unknown field '{unknown[0][:80]}': check its spelling.", param=unknown[0][:80])
    own = {} if new.knobs is None else new.knobs
    if not new.others or not isinstance(own, dict):
        return parse_knobs(own)
    twice = sorted(new.others.keys() & own.keys())
    if twice:
        raise BadInput(f"'{twice[0]}' is given both beside and in '{KNOBS_KEY}': keep one.", param=twice[0])
    return parse_knobs({**own, **new.others})


def _name_from(suffix: str | None) -> str | None:
    """OpenAI's suffix as an adapter's name; None when nothing of it can be one."""
    name = (suffix or "").lower().lstrip("._-")[:63]
    return name if is_name(name) else None


def _broken_file(record: FileRecord, param: str) -> BadInput:
    report = report_of(record)
    failure = (
        job_failure(report, "validation_file" if param == "validation_file" else "training_file") if report else None
    )
    reason = failure.message if failure else (record.status_details or "it is not valid")
    code = failure.code if failure else "invalid_training_file"
    return BadInput(f"File '{record.id}' cannot be used: {reason}", code, param=param)
