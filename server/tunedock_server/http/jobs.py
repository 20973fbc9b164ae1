"""/v1/fine_tuning/jobs: create, get, list, cancel, pause, resume, events, checkpoints."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr
from starlette.responses import JSONResponse, Response

from ..services import wire
from ..services.jobs import MAX_SEED, JobService, NewJob
from .attempts import attempt_of
from .auth import Policy
from .paging import After, Limit
from .routing import Routes, principal_of

MetadataKey = Annotated[StrictStr, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[StrictStr, Field(max_length=512)]


class WandbBody(BaseModel):
    project: StrictStr = Field(min_length=1, max_length=256)
    name: StrictStr | None = None
    entity: StrictStr | None = None
    tags: list[StrictStr] | None = Field(default=None, max_length=64)


class IntegrationBody(BaseModel):
    type: Annotated[str, Field(pattern="^wandb$")]
    wandb: WandbBody


class JobBody(BaseModel):
    """OpenAI's fields, and TuneDock's knobs under `tunedock` (or beside them)."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    model: StrictStr = Field(min_length=1, max_length=200)
    training_file: StrictStr = Field(min_length=1, max_length=200)
    validation_file: StrictStr | None = Field(default=None, min_length=1, max_length=200)
    suffix: StrictStr | None = Field(default=None, min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
    seed: StrictInt | None = Field(default=None, ge=0, le=MAX_SEED)
    metadata: dict[MetadataKey, MetadataValue] | None = Field(default=None, max_length=16)
    integrations: list[IntegrationBody] | None = Field(default=None, max_length=5)
    method: dict[str, Any] | None = None
    hyperparameters: dict[str, Any] | None = None
    tunedock: dict[str, Any] | None = None

    def as_new(self) -> NewJob:
        return NewJob(
            model=self.model,
            training_file=self.training_file,
            validation_file=self.validation_file,
            suffix=self.suffix,
            seed=self.seed,
            metadata=self.metadata,
            integrations=_plain(self.integrations),
            method=self.method,
            hyperparameters=self.hyperparameters,
            knobs=self.tunedock,
            others=self.model_extra or {},
        )


def _plain(integrations: list[IntegrationBody] | None) -> list[Any] | None:
    return None if integrations is None else [one.model_dump(exclude_none=True) for one in integrations]


def declare(routes: Routes, jobs: JobService) -> None:
    root, policy, tags = "/v1/fine_tuning/jobs", Policy.JOBS, ["fine-tuning"]

    @routes.post(root, policy=policy, tags=tags)
    async def create_job(request: Request, body: Annotated[JobBody, Body()]) -> Response:
        """Checked completely against the files and the live engine, then queued."""
        attempt = attempt_of(request, await request.body())
        return JSONResponse(await jobs.create(principal_of(request).project, body.as_new(), attempt))

    @routes.get(root, policy=policy, tags=tags)
    async def list_jobs(
        request: Request, after: After = None, limit: Limit = 20, metadata: Annotated[str | None, Query()] = None
    ) -> Response:
        """Newest first; `metadata[k]=v` filters, `metadata=null` means jobs without any."""
        pairs, none = wire.metadata_filter(dict(request.query_params))
        data, more = await jobs.list(principal_of(request).project, after, limit, pairs, none)
        return JSONResponse({"object": "list", "data": data, "has_more": more})

    @routes.get(f"{root}/{{job_id}}", policy=policy, tags=tags)
    async def retrieve_job(request: Request, job_id: str) -> Response:
        return JSONResponse(await jobs.get(principal_of(request).project, job_id))

    @routes.post(f"{root}/{{job_id}}/cancel", policy=policy, tags=tags)
    async def cancel_job(request: Request, job_id: str) -> Response:
        return JSONResponse(await jobs.cancel(principal_of(request).project, job_id))

    @routes.post(f"{root}/{{job_id}}/pause", policy=policy, tags=tags)
    async def pause_job(request: Request, job_id: str) -> Response:
        return JSONResponse(await jobs.pause(principal_of(request).project, job_id))

    @routes.post(f"{root}/{{job_id}}/resume", policy=policy, tags=tags)
    async def resume_job(request: Request, job_id: str) -> Response:
        return JSONResponse(await jobs.resume(principal_of(request).project, job_id))

    @routes.get(f"{root}/{{job_id}}/events", policy=policy, tags=tags)
    async def list_events(request: Request, job_id: str, after: After = None, limit: Limit = 20) -> Response:
        """Newest first."""
        page = await jobs.events(principal_of(request).project, job_id, after, limit)
        return JSONResponse(wire.listing(page, wire.event))

    @routes.get(f"{root}/{{job_id}}/checkpoints", policy=policy, tags=tags)
    async def list_checkpoints(request: Request, job_id: str, after: After = None, limit: Limit = 10) -> Response:
        """Newest first. Each can be asked as a model."""
        page = await jobs.checkpoints(principal_of(request).project, job_id, after, limit)
        return JSONResponse(wire.listing(page, wire.checkpoint))

    @routes.get(f"{root}/{{job_id}}/plot", policy=policy, tags=tags)
    async def plot(request: Request, job_id: str) -> Response:
        """Losses and accuracies of the job so far, as a PNG."""
        image = await jobs.plot(principal_of(request).project, job_id)
        return Response(image, media_type="image/png")
