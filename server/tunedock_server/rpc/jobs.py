"""`tunedock_api.v1.FineTuning`: jobs, on top of the files half."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from typing import Any

from pydantic import ValidationError
from tunedock_api.jsonpb import Json, from_answer, given, plain
from tunedock_api.v1 import fine_tuning_pb2 as pb
from tunedock_registry.records import Attempt

from ..http.errors import validation_error
from ..http.jobs import JobBody
from ..services import wire
from ..services.files import FileService
from ..services.jobs import JobService, NewJob
from ..services.transfers import Transfers
from .files import FilesRpc
from .guard import Context, current_call
from .paging import after_of, limit_of, page

FINAL = ("succeeded", "failed", "cancelled")
WATCH_S = 0.25
_PAGE = 100


class FineTuningRpc(FilesRpc):
    """Files and jobs."""

    def __init__(self, files: FileService, transfers: Transfers, jobs: JobService) -> None:
        super().__init__(files, transfers)
        self._jobs = jobs

    async def CreateJob(self, request: pb.CreateJobRequest, context: Context) -> pb.Job:
        request_sha256 = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        attempt = Attempt(request.idempotency_key or None, request_sha256, False)
        return _job(await self._jobs.create(current_call().principal.project, _new_job(request), attempt))

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.Job:
        return _job(await self._jobs.get(current_call().principal.project, request.id))

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.Job:
        return _job(await self._jobs.cancel(current_call().principal.project, request.id))

    async def PauseJob(self, request: pb.PauseJobRequest, context: Context) -> pb.Job:
        return _job(await self._jobs.pause(current_call().principal.project, request.id))

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: Context) -> pb.Job:
        return _job(await self._jobs.resume(current_call().principal.project, request.id))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        project, limit = current_call().principal.project, limit_of(request.limit)
        jobs, more = await self._jobs.list(project, after_of(request.after), limit, dict(request.metadata), False)
        return pb.ListJobsResponse(data=map(_job, jobs), has_more=more)

    async def ListJobEvents(self, request: pb.ListJobEventsRequest, context: Context) -> pb.ListJobEventsResponse:
        project, limit = current_call().principal.project, limit_of(request.limit)
        found = await self._jobs.events(project, request.id, after_of(request.after), limit)
        return page(pb.ListJobEventsResponse, wire.listing(found, wire.event))

    async def ListJobCheckpoints(
        self, request: pb.ListJobCheckpointsRequest, context: Context
    ) -> pb.ListJobCheckpointsResponse:
        project, limit = current_call().principal.project, limit_of(request.limit)
        found = await self._jobs.checkpoints(project, request.id, after_of(request.after), limit)
        return page(pb.ListJobCheckpointsResponse, wire.listing(found, wire.checkpoint))

    async def WatchJob(self, request: pb.WatchJobRequest, context: Context) -> AsyncGenerator[pb.JobEvent, None]:
        project, last = current_call().principal.project, request.after
        while True:
            ended = (await self._jobs.get(project, request.id))["status"] in FINAL
            for event in await self._newer(project, request.id, last):
                last = event["id"]
                yield from_answer(pb.JobEvent, event)
            if ended:
                return
            await asyncio.sleep(WATCH_S)

    async def _newer(self, project: str, job_id: str, last: str) -> list[Json]:
        """Events after `last`, oldest first; the service lists the newest first."""
        newer: list[Json] = []
        after: str | None = None
        while True:
            found = await self._jobs.events(project, job_id, after, _PAGE)
            for record in found.items:
                if record.id == last:
                    return newer[::-1]
                newer.append(wire.event(record))
            if not found.has_more:
                return newer[::-1]
            after = found.items[-1].id


def _new_job(request: pb.CreateJobRequest) -> NewJob:
    """Through the same model that checks REST's body. Raises BadInput."""
    body = given(request)
    body.pop("idempotency_key", None)
    if request.HasField("method"):
        body["method"] = {"type": request.method.type or "supervised", **body["method"]}
    if request.HasField("tunedock"):
        body["tunedock"] = plain(request.tunedock)
    try:
        return JobBody.model_validate({"model": "", "training_file": "", **body}).as_new()
    except ValidationError as error:
        raise validation_error(error.errors()) from None


def _job(shown: Json) -> pb.Job:
    return from_answer(pb.Job, _without_auto(shown))


def _without_auto(value: Any) -> Any:
    """REST says "auto" where we say nothing."""
    if isinstance(value, dict):
        return {key: _without_auto(item) for key, item in value.items() if item != "auto"}
    return value
