"""Engine death, restart, restored residency; the gate when the engine is away; health and capacity meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio
from support.bases import tiny_base
from support.datasets import facts, jsonl
from support.fake_pool import FakePool
from support.running import Running, eventually, running
from tunedock_api.errors import Unavailable
from tunedock_server.services.files import FileValidator


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as started:
        yield started


async def status(server: Running, path: str) -> int:
    return int((await server.raw.get(path)).status_code)


async def _answers(server: Running, path: str, code: int) -> bool:
    return await status(server, path) == code


async def test_a_part_of_the_background_that_breaks_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(validator: FileValidator) -> None:
        raise RuntimeError("the disk is a teapot")

    monkeypatch.setattr(FileValidator, "run", broken)
    async with running(tmp_path) as server:
        assert await status(server, "/healthz") == 200
    assert "broken has ended and is needed: restart the server" in caplog.text
    assert "the disk is a teapot" in caplog.text


async def _busy(server: Running) -> bool:
    return sum(server.pool.busy.values()) > 0


async def test_a_dead_engine_is_seen_within_a_second_and_comes_back_with_its_adapters(server: Running) -> None:
    first = await server.ready(seed=1)
    second = await server.ready(seed=2)
    await server.raw.put("/v1/adapters/support/versions/1/pin")
    await server.ask("support@2")
    server.pool.behaviour.start_s = 0.5
    server.pool.die()
    began = time.monotonic()
    await eventually(lambda: _answers(server, "/readyz", 503), 1.0)
    assert time.monotonic() - began < 1.0
    assert await status(server, "/healthz") == 200
    with pytest.raises(openai.InternalServerError) as caught:
        await server.ask("support")
    assert caught.value.code == "engine_unavailable"
    assert caught.value.response.headers["x-should-retry"] == "true"

    async def back() -> bool:
        return await status(server, "/readyz") == 200

    await eventually(back)
    assert await server.pool.residency() == {first.digest: "pinned", second.digest: "host"}
    assert (await server.ask("support@2")).model == "support@2"
    assert "tunedock_engine_restarts_total 1.0" in (await server.raw.get("/metrics")).text


async def test_a_request_that_sent_nothing_yet_survives_the_death_of_the_engine(server: Running) -> None:
    await server.ready()
    server.pool.behaviour.token_s = 0.3
    asking = asyncio.create_task(server.ask("support"))
    streaming = asyncio.create_task(server.ask("support", stream=True))
    await eventually(lambda: _busy(server))
    server.pool.die()
    server.pool.behaviour.token_s = 0.0
    assert (await asking).model == "support@1"
    chunks = [chunk async for chunk in await streaming]
    assert {chunk.model for chunk in chunks} == {"support@1"}
    assert server.server.leases.total() == 0


async def test_an_open_stream_gets_a_typed_error_when_the_engine_dies(server: Running) -> None:
    server.pool.behaviour.token_s = 0.1
    server.pool.behaviour.start_s = 1.0
    stream = await server.ask("tiny-base", stream=True)
    await anext(stream)
    server.pool.die()
    with pytest.raises(openai.APIError, match="not running"):
        async for _ in stream:
            pass


async def test_an_engine_that_keeps_dying_is_given_up_and_says_so(tmp_path: Path) -> None:
    async with running(tmp_path, engine_restarts=1) as server:
        server.pool.behaviour.start_error = Unavailable("no memory")
        server.pool.behaviour.start_errors_left = 99
        server.pool.die()

        async def given_up() -> bool:
            return server.server.keeper.state == "failed"

        await eventually(given_up)
        assert (await server.raw.get("/readyz")).json() == {"status": "failed"}
        with pytest.raises(openai.InternalServerError, match="given up"):
            await server.ask("tiny-base")


async def test_a_failed_start_is_tried_again_with_back_off(server: Running) -> None:
    server.pool.behaviour.start_error = Unavailable("device busy")
    server.pool.behaviour.start_errors_left = 1
    server.pool.die()

    async def back() -> bool:
        return server.server.keeper.restarts == 1

    await eventually(back)
    assert (await server.ask("tiny-base")).model == "tiny-base"


async def test_versions_that_wait_while_the_engine_is_down_pass_the_gate_afterwards(server: Running) -> None:
    server.pool.behaviour.start_s = 0.4
    server.pool.die()
    version = await asyncio.to_thread(server.publish)
    assert (await server.settled(version.id)).state == "ready"


async def test_a_restarted_server_knows_aliases_pins_and_what_the_gate_left_behind(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        await server.ready(seed=1)
        await server.raw.put("/v1/adapters/support/versions/1/pin")
    async with running(tmp_path) as server:
        left = await asyncio.to_thread(server.publish, "support", 2)
        await asyncio.to_thread(server.server.registry.adapters.set_state, left.id, "verifying")
    async with running(tmp_path, pool=FakePool(tiny_base())) as server:
        assert "pinned" in (await server.pool.residency()).values()
        assert (await server.ask("support")).model == "support@1"
        assert (await server.settled(left.id)).state == "ready"


async def test_a_registry_that_cannot_be_read_does_not_stop_loaded_adapters(server: Running) -> None:
    await server.ready()
    database = server.home / "tunedock.db"
    hidden = database.rename(server.home / "hidden.db")
    database.mkdir()
    try:
        await asyncio.sleep(0.3)
        assert (await server.ask("support")).model == "support@1"
        assert await status(server, "/readyz") == 200
    finally:
        database.rmdir()
        hidden.rename(database)


async def test_a_drained_server_is_not_ready_and_refuses_while_running_answers_finish(server: Running) -> None:
    server.pool.behaviour.token_s = 0.1
    running_answer = asyncio.create_task(server.ask("tiny-base"))
    await eventually(lambda: _busy(server))
    draining = asyncio.create_task(server.server.drain())
    await asyncio.sleep(0.05)
    assert (await server.raw.get("/readyz")).json() == {"status": "draining"}
    with pytest.raises(openai.InternalServerError) as caught:
        await server.ask("tiny-base")
    assert caught.value.code == "shutting_down"
    assert (await running_answer).model == "tiny-base"
    await draining


async def test_files_are_validated_and_questions_refused_while_the_engine_starts(tmp_path: Path) -> None:
    pool = FakePool(tiny_base())
    pool.behaviour.start_s = 1.5
    async with running(tmp_path, pool=pool, wait=False) as server:
        assert (await server.raw.get("/readyz")).json() == {"status": "starting"}
        assert await status(server, "/healthz") == 200
        file = await server.client.files.create(file=("d.jsonl", jsonl(facts(10))), purpose="fine-tune")
        done = await server.client.files.wait_for_processing(file.id, poll_interval=0.02)
        assert done.status == "processed"
        with pytest.raises(openai.InternalServerError, match="starting"):
            await server.ask("tiny-base")
