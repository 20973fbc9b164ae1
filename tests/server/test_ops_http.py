"""Health, metrics, documentation, and bodies that no honest client sends."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from support.running import Running, running
from tunedock_registry.records import JobSpec

CLIENT_KEEPS_S = 5.0  # httpx's keepalive_expiry


@pytest_asyncio.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running(tmp_path_factory.mktemp("ops")) as started:
        yield started


async def test_metrics_name_adapters_as_the_public_does_and_paths_by_template(server: Running) -> None:
    await server.ready()
    await server.ask("support")
    await server.raw.get("/v1/adapters/support/versions/1")
    await server.raw.get("/nobody/declared/this")
    await server.raw.request("BREW", "/v1/models")
    text = (await server.raw.get("/metrics")).text
    assert 'running_lora_adapters="support@1"' in text
    assert 'vllm:lora_adapter_loaded{adapter_name="support@1",level="gpu",pinned="false",rank="4"} 1.0' in text
    assert 'route="/v1/adapters/{name}/versions/{version}"' in text
    assert 'method="other",route="unmatched",status="404"' in text
    assert "BREW" not in text
    assert "tunedock_ready 1.0" in text
    assert "nobody" not in text


async def test_the_documentation_lists_every_route_that_is_meant_for_people(server: Running) -> None:
    paths = (await server.raw.get("/openapi.json")).json()["paths"]
    assert {"/v1/chat/completions", "/v1/adapters/{name}/aliases/{alias}", "/v1/capacity", "/readyz"} <= set(paths)
    assert (await server.raw.get("/docs")).status_code == 200


async def test_a_connection_that_rests_for_longer_than_openais_client_keeps_one_is_not_closed(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for rest_s in (0.0, 1.2 * CLIENT_KEEPS_S):
        await asyncio.sleep(rest_s)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 OK" in head
        (size,) = re.findall(rb"content-length: (\d+)", head)
        await reader.readexactly(int(size))
    writer.close()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "not valid JSON"),
        (b'{"model": NaN}', "NaN is not a JSON number"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"model": "\\ud800"}', "lone surrogate"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON"),
        (b"[1]", "valid dictionary"),
        (b"", "Field required"),
    ],
)
async def test_a_body_that_is_no_json_object_is_400_with_the_reason(server: Running, body: bytes, text: str) -> None:
    headers = {"content-type": "application/json"}
    answer = await server.raw.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert text in answer.json()["error"]["message"]
    assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"].startswith("req_")


async def test_a_body_over_the_limit_is_413_also_without_a_length(server: Running) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(80):
            yield b" " * 65_536

    headers = {"content-type": "application/json"}
    for content in (b" " * (5 << 20), chunks()):
        answer = await server.raw.post("/v1/chat/completions", content=content, headers=headers)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "payload_too_large"


async def test_unknown_routes_and_methods_answer_in_openai_s_shape(server: Running) -> None:
    missing = await server.raw.get("/v1/nope")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = await server.raw.put("/v1/models")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert "x-request-id" in wrong.headers


async def test_a_header_bomb_is_cut_off_and_the_server_lives(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-bomb: " + b"a" * 200_000)
    status = await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    assert b"400" in status
    assert (await server.raw.get("/healthz")).status_code == 200


async def test_a_plot_is_served_when_the_trainer_has_drawn_one(server: Running) -> None:
    registry = server.server.registry
    job = registry.jobs.create("default", JobSpec(model="tiny-base", training_file="file-1"))
    path = f"/v1/fine_tuning/jobs/{job.id}/plot"
    missing = await server.raw.get(path)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    folder = registry.home.run_dir(job.id)
    folder.mkdir(parents=True)
    (folder / "plot.png").write_bytes(b"\x89PNG")
    drawn = await server.raw.get(path)
    assert (drawn.content, drawn.headers["content-type"]) == (b"\x89PNG", "image/png")


async def test_a_small_answer_does_not_wait_for_an_acknowledgement(server: Running) -> None:
    await server.raw.get("/healthz")
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        await server.raw.get("/healthz")
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.03, "40 ms is Nagle's algorithm against a delayed acknowledgement"
