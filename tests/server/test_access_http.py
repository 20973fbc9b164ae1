"""Authentication: every route decides before it reads, keys have scopes and projects, lending crosses projects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from fastapi import FastAPI
from openai import AsyncOpenAI
from starlette.responses import Response
from starlette.routing import BaseRoute
from support.datasets import facts, jsonl
from support.fake_trainer import FakeTrainer
from support.running import Running, running
from tunedock_api.errors import Internal
from tunedock_server.app import build_app
from tunedock_server.http.auth import Policy
from tunedock_server.http.context import RequestContext
from tunedock_server.http.routing import GuardedRoute, check_all_guarded

ADMIN = "td-bootstrap-admin-key"


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path, api_key=ADMIN) as started:
        yield started


async def key(server: Running, *scopes: str, project: str = "default", **more: Any) -> dict[str, Any]:
    answer = await server.raw.post("/v1/keys", json={"name": "k", "scopes": scopes, "project": project, **more})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def client_of(server: Running, secret: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0)


def routes_of(server: Running) -> list[BaseRoute]:
    context = build_app(server.server)
    assert isinstance(context, RequestContext)
    app = context._app
    assert isinstance(app, FastAPI)
    return app.routes


async def test_every_route_but_the_public_ones_is_401_without_a_key_and_with_a_wrong_one(server: Running) -> None:
    public = set()
    for route in routes_of(server):
        assert isinstance(route, GuardedRoute)
        path = route.path.replace("{", "").replace("}", "").replace(":path", "")
        for method in route.methods:
            for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": ADMIN}):
                answer = await server.raw.request(
                    method, path, headers={"authorization": "", "content-type": "application/json", **header}
                )
                if route.policy is Policy.PUBLIC:
                    public.add(route.path)
                    assert answer.status_code == 200, path
                    continue
                assert answer.status_code == 401, (method, path)
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
    assert public == {"/healthz", "/readyz", "/health", "/docs", "/openapi.json"}


def test_a_route_without_a_policy_stops_the_start() -> None:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/open")
    async def opened() -> Response:
        return Response()

    with pytest.raises(Internal, match="/open"):
        check_all_guarded(app.routes)


async def test_a_body_is_not_read_before_the_caller_is_known(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}authorization: Bearer wrong\r\ncontent-length: 100000\r\n\r\n[".encode())
    status = await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    assert b"401" in status


async def test_scopes_projects_expiry_and_revocation_of_keys(server: Running) -> None:
    await server.ready()
    asks = await key(server, "inference", "models")
    client = client_of(server, asks["key"])
    assert (await client.models.list()).data
    answer = await client.chat.completions.create(model="support", messages=[{"role": "user", "content": "x"}])
    assert answer.model == "support@1"
    with pytest.raises(openai.PermissionDeniedError) as denied:
        await client.files.list()
    assert denied.value.code == "permission_denied"
    stranger = client_of(server, (await key(server, "inference", project="other"))["key"])
    with pytest.raises(openai.NotFoundError):
        await stranger.chat.completions.create(model="support", messages=[{"role": "user", "content": "x"}])
    gone = await server.raw.delete(f"/v1/keys/{asks['id']}")
    assert gone.json()["deleted"]
    with pytest.raises(openai.AuthenticationError):
        await client.models.list()
    listed = (await server.raw.get("/v1/keys")).json()["data"]
    assert listed[0]["revoked_at"]
    assert all("key" not in one for one in listed)
    refused = await server.raw.post("/v1/keys", json={"name": "k", "scopes": ["everything"]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "scopes.0")


async def test_a_checkpoint_is_lent_to_another_project_and_taken_back(server: Running, tmp_path: Path) -> None:
    file = await server.client.files.create(file=("d.jsonl", jsonl(facts(12))), purpose="fine-tune")
    await server.client.fine_tuning.jobs.create(model="tiny-base", training_file=file.id, suffix="lent")
    trainer = FakeTrainer(server.server.registry, server.base, tmp_path / "t")
    claim = await asyncio.to_thread(trainer.claim)
    checkpoint = await asyncio.to_thread(trainer.checkpoint, claim, 2)
    await server.settled(checkpoint.id)
    other = client_of(server, (await key(server, "inference", "models", "jobs", "files", project="other"))["key"])
    permissions = server.client.fine_tuning.checkpoints.permissions

    async def ask() -> Any:
        return await other.chat.completions.create(model=checkpoint.ref, messages=[{"role": "user", "content": "x"}])

    with pytest.raises(openai.NotFoundError):
        await ask()
    made = [p async for p in await permissions.create(checkpoint.ref, project_ids=["other"])]
    assert [(p.object, p.project_id) for p in made] == [("checkpoint.permission", "other")]
    assert (await ask()).model == checkpoint.ref
    assert checkpoint.ref in [model.id for model in (await other.models.list()).data]
    listed = [p.id async for p in await permissions.list(checkpoint.ref, order="ascending")]
    assert listed == [made[0].id]
    assert (await permissions.delete(made[0].id, fine_tuned_model_checkpoint=checkpoint.ref)).deleted
    with pytest.raises(openai.NotFoundError):
        await ask()


async def test_deleting_a_model_takes_it_out_of_service_but_never_the_base(server: Running) -> None:
    await server.ready(seed=1)
    await server.ready(seed=2)
    deleted = await server.client.models.delete("support@1")
    assert (deleted.id, deleted.deleted, deleted.object) == ("support@1", True, "model")
    for model in ("support@1", "support"):
        with pytest.raises(openai.NotFoundError):
            await server.ask(model)
    assert (await server.ask("support@2")).model == "support@2"
    with pytest.raises(openai.PermissionDeniedError):
        await server.client.models.delete("tiny-base")
    with pytest.raises(openai.NotFoundError):
        await server.client.models.delete("a/b c::d")
    assert (await server.client.models.delete("support@2")).deleted
