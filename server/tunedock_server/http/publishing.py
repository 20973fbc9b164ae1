"""POST /v1/adapters/{name}/versions: bring an adapter that was trained elsewhere."""

from __future__ import annotations

from typing import Annotated

from fastapi import File, Form, Request, UploadFile
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response
from tunedock_api.errors import BadInput
from tunedock_api.manifest import CONFIG_FILE, WEIGHTS_FILE, ServingProfile

from ..services import wire
from ..services.publishing import Publisher, Upload
from .adapters import VERSION_CURSOR
from .attempts import attempt_of
from .auth import Policy
from .routing import Routes, principal_of

_OVERHEAD_BYTES = 32 << 20


def declare(routes: Routes, publisher: Publisher, max_adapter_bytes: int) -> None:
    @routes.post(
        "/v1/adapters/{name}/versions",
        policy=Policy.ADAPTERS_WRITE,
        max_body_bytes=max_adapter_bytes + _OVERHEAD_BYTES,
        tags=["adapters"],
    )
    async def publish_version(
        request: Request,
        name: str,
        config: Annotated[UploadFile, File(alias=CONFIG_FILE)],
        weights: Annotated[UploadFile, File(alias=WEIGHTS_FILE)],
        manifest: Annotated[UploadFile | None, File()] = None,
        serving: Annotated[str | None, Form(max_length=1 << 20)] = None,
    ) -> Response:
        """A PEFT LoRA folder as the next version. It serves when the publish gate has found it `ready`.

        `serving`: the serving profile as JSON (system_prompt, sampling, stop, chat_template_kwargs).
        """
        brought = manifest.file if manifest is not None else None
        upload = Upload(config.file, weights.file, brought, profile_of(serving))
        record = await publisher.publish(principal_of(request).project, name, upload, attempt_of(request))
        return JSONResponse(wire.version(record, "stored") | {"id": f"{VERSION_CURSOR}{record.id}"})


def profile_of(text: str | None) -> ServingProfile | None:
    """Raises BadInput with the field's path."""
    if text is None:
        return None
    try:
        return ServingProfile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(["serving", *map(str, first["loc"])])
        raise BadInput(f"'{where}': {first['msg']}", param=where) from None
