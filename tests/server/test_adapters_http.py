"""Versions, aliases and their life over REST."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from support.bases import adapter_config, adapter_weights
from support.fake_pool import word_of
from support.running import Running, eventually, running
from tunedock_registry.layout import Home
from tunedock_registry.registry import Registry


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as started:
        yield started


async def bring(
    server: Running,
    name: str = "support",
    seed: int = 1,
    serving: dict[str, Any] | None = None,
    parts: dict[str, tuple[str, bytes] | None] | None = None,
) -> Any:
    """POSTs an adapter as its author would; `parts` replaces files. Returns the raw answer."""
    files = {
        "adapter_config.json": ("adapter_config.json", adapter_config(base="any")),
        "adapter_model.safetensors": ("adapter_model.safetensors", adapter_weights(server.base, seed)),
    }
    chosen = {part: content for part, content in {**files, **(parts or {})}.items() if content is not None}
    data = {"serving": json.dumps(serving)} if serving is not None else {}
    return await server.raw.post(f"/v1/adapters/{name}/versions", files=chosen, data=data)


async def brought(
    server: Running, seed: int, name: str = "support", serving: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Brought and decided by the gate."""
    answer = await bring(server, name, seed, serving)
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    await server.settled(int(shown["id"].removeprefix("ver_")))
    fetched: dict[str, Any] = (await server.raw.get(f"/v1/adapters/{name}/versions/{shown['version']}")).json()
    return fetched


async def put(server: Running, path: str, body: dict[str, Any] | None = None, **options: Any) -> Any:
    return await server.raw.put(f"/v1/adapters/{path}", json=body, **options)


async def test_a_brought_adapter_passes_the_gate_goes_live_and_comes_back_whole(server: Running) -> None:
    shown = await brought(server, 1)
    assert (shown["state"], shown["version"], shown["rank"], shown["origin"]) == ("ready", 1, 4, "imported")
    assert shown["parity"]["status"] == "not_checked"
    assert (await server.ask("support")).model == "support@1"
    weights = await server.raw.get("/v1/adapters/support/versions/1/download")
    assert weights.content == adapter_weights(server.base, 1)
    config = await server.raw.get("/v1/adapters/support/versions/1/download?file=adapter_config.json")
    assert config.json()["peft_type"] == "LORA"
    bad = await server.raw.get("/v1/adapters/support/versions/1/download?file=../../tunedock.db")
    assert bad.status_code == 404


async def test_a_version_that_is_shown_as_ready_can_be_asked_at_once(server: Running) -> None:
    for number in range(1, 9):
        assert (await bring(server, seed=number)).status_code == 200
        shown = {"state": "published"}
        while shown["state"] != "ready":
            shown = (await server.raw.get(f"/v1/adapters/support/versions/{number}")).json()
        assert (await server.ask(f"support@{number}")).model == f"support@{number}"


async def test_asking_for_a_version_can_wait_for_the_verdict(server: Running) -> None:
    server.pool.behaviour.load_s = 0.3
    number = (await bring(server)).json()["version"]
    path = f"/v1/adapters/support/versions/{number}"
    assert (await server.raw.get(path, params={"wait_s": 0.05})).json()["state"] in ("published", "verifying")
    assert (await server.raw.get(path, params={"wait_s": 20})).json()["state"] == "ready"
    began = time.monotonic()
    assert (await server.raw.get(path, params={"wait_s": 20})).json()["state"] == "ready"
    assert time.monotonic() - began < 5, "a verdict that is there was waited for"


async def test_waiting_for_a_verdict_ends_with_the_adapter(server: Running) -> None:
    server.pool.behaviour.load_s = 20.0
    number = (await bring(server)).json()["version"]
    waiting = asyncio.create_task(server.raw.get(f"/v1/adapters/support/versions/{number}?wait_s=20"))
    await asyncio.sleep(0.2)
    assert (await server.raw.delete("/v1/adapters/support")).status_code == 200
    assert (await asyncio.wait_for(waiting, 5)).status_code == 404


@pytest.mark.parametrize("wait_s", ["-1", "31", "nan", "soon"])
async def test_a_wait_that_cannot_be_is_400(server: Running, wait_s: str) -> None:
    number = (await bring(server)).json()["version"]
    answer = await server.raw.get(f"/v1/adapters/support/versions/{number}?wait_s={wait_s}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "wait_s")


async def test_what_cannot_be_served_is_422_with_the_reason_and_stores_nothing(server: Running) -> None:
    answer = await bring(server, parts={"adapter_config.json": ("c", adapter_config(rank=99, base="x"))})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["code"] == "adapter_rejected"
    answer = await bring(server, parts={"adapter_model.safetensors": ("w", b"\x80\x04pickle")})
    assert answer.status_code == 422
    answer = await bring(server, parts={"manifest": ("m", b"{}")})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "manifest")
    answer = await bring(server, parts={"adapter_model.safetensors": None})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "adapter_model.safetensors")
    answer = await bring(server, name="tiny-base")
    assert answer.status_code == 400
    assert (await server.raw.get("/v1/adapters")).json()["data"] == []


async def test_an_adapter_without_effect_in_the_engine_is_rejected_and_never_served(server: Running) -> None:
    first = await bring(server)
    server.pool.behaviour.same_as_base.add(first.json()["digest"])
    version = await server.settled(int(first.json()["id"].removeprefix("ver_")))
    assert version.state == "rejected"
    assert "no effect" in str(version.reason)
    with pytest.raises(openai.NotFoundError):
        await server.ask("support@1")
    refused = await put(server, "support/aliases/production", {"version": 1})
    assert refused.json()["error"]["code"] == "version_not_ready"


async def test_promote_and_roll_back_move_the_pointer_and_write_history(server: Running) -> None:
    await brought(server, 1)
    await brought(server, 2)
    assert (await server.ask("support")).model == "support@1", "only the first version goes live by itself"
    moved = await put(server, "support/aliases/production", {"version": 2, "reason": "better"})
    assert moved.json()["revision"] == 2
    assert (await server.ask("support")).model == "support@2"
    back = await server.raw.post("/v1/adapters/support/rollback", json={"alias": "production", "reason": "worse"})
    assert back.json()["targets"] == [{"version": 1, "weight": 1.0}]
    assert (await server.ask("support")).model == "support@1"
    history = (await server.raw.get("/v1/adapters/support/history", params={"limit": 2})).json()
    assert [(entry["targets"][0]["version"], entry["reason"]) for entry in history["data"]] == [
        (1, "worse"),
        (2, "better"),
    ]
    assert history["has_more"]
    after = {"after": history["last_id"]}
    rest = (await server.raw.get("/v1/adapters/support/history", params=after)).json()
    assert [entry["actor"] for entry in rest["data"]] == ["tunedock"]


async def test_a_promote_that_lost_the_race_is_412_with_the_current_state(server: Running) -> None:
    await brought(server, 1)
    await brought(server, 2)
    lost = await put(server, "support/aliases/production", {"version": 2, "expected_revision": 7})
    assert lost.status_code == 412
    assert lost.json()["error"]["code"] == "alias_conflict"
    assert lost.json()["error"]["details"] == {"revision": 1, "targets": [{"version": 1, "weight": 1.0}]}
    matched = await put(server, "support/aliases/production", {"version": 2}, headers={"if-match": '"1"'})
    assert matched.status_code == 200
    assert matched.headers["etag"] == '"2"'


async def test_a_canary_splits_by_weight_and_sticks_to_the_user(server: Running) -> None:
    await brought(server, 1)
    await brought(server, 2)
    targets = {"targets": [{"version": 1, "weight": 3}, {"version": 2, "weight": 1}]}
    assert (await put(server, "support/aliases/canary", targets)).status_code == 200
    answers = await asyncio.gather(*(server.ask("support@canary", user=f"u{n}") for n in range(80)))
    counts = Counter(answer.model for answer in answers)
    assert 8 <= counts["support@2"] <= 36
    again = await asyncio.gather(*(server.ask("support@canary", user=f"u{n}") for n in range(80)))
    assert [answer.model for answer in again] == [answer.model for answer in answers]


async def test_bad_alias_requests_say_which_field(server: Running) -> None:
    await brought(server, 1)
    for path, body, param in (
        ("support/aliases/production", {}, "version"),
        ("support/aliases/production", {"version": 1, "targets": [{"version": 1}]}, "version"),
        ("support/aliases/7", {"version": 1}, "alias"),
        ("support/aliases/a", {"version": 0}, "version"),
        ("support/aliases/a", {"verson": 1}, "verson"),
        ("support/aliases/a", {"targets": [{"version": 1, "weight": 0}]}, "targets.0.weight"),
    ):
        answer = await put(server, path, body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert (await put(server, "nope/aliases/production", {"version": 1})).status_code == 404
    assert (await put(server, "No%2FPe/aliases/production", {"version": 1})).status_code == 404


async def test_an_alias_stays_where_it_is_when_its_target_cannot_be_loaded(server: Running) -> None:
    await brought(server, 1)
    second = await brought(server, 2)
    await server.server.residents.evict(second["digest"])
    server.pool.behaviour.load_error = openai_free_unavailable()
    answer = await put(server, "support/aliases/production", {"version": 2})
    assert answer.status_code == 503
    server.pool.behaviour.load_error = None
    assert (await server.ask("support")).model == "support@1"


def openai_free_unavailable() -> Any:
    from tunedock_api.errors import Unavailable

    return Unavailable("files are gone", "adapter_unavailable")


async def test_pins_show_in_residency_and_capacity_and_leave_one_slot(server: Running) -> None:
    await brought(server, 1)
    await brought(server, 2)
    pinned = (await put(server, "support/versions/1/pin")).json()
    assert (pinned["pinned"], pinned["residency"]) == (True, "pinned")
    full = await put(server, "support/versions/2/pin")
    assert full.status_code == 409
    assert full.headers["x-should-retry"] == "false"
    capacity = (await server.raw.get("/v1/capacity")).json()
    assert (capacity["slots"], capacity["slots_pinned"], capacity["host_slots"]) == (2, 1, 4)
    unpinned = await server.raw.delete("/v1/adapters/support/versions/1/pin")
    assert unpinned.json()["pinned"] is False
    assert (await put(server, "support/versions/2/pin")).status_code == 200


async def test_a_load_brings_a_version_into_the_engine_and_changes_no_record(server: Running) -> None:
    await brought(server, 1)
    second = await brought(server, 2)
    await server.server.residents.evict(second["digest"])
    before = (await server.raw.get("/v1/adapters/support/history")).json()
    loaded = (await server.raw.post("/v1/adapters/support/versions/2/load")).json()
    assert (loaded["version"], loaded["pinned"], loaded["residency"]) == (2, False, "slot")
    assert second["digest"] in await server.pool.residency()
    assert (await server.raw.get("/v1/adapters/support/history")).json() == before
    await server.server.residents.evict(second["digest"])
    assert (await server.raw.get("/v1/adapters/support/versions/2")).json()["residency"] == "stored"


async def test_only_what_is_there_and_ready_is_loaded(server: Running) -> None:
    await brought(server, 1)
    await brought(server, 2)
    await server.raw.delete("/v1/adapters/support/versions/2")
    retired, unknown = [
        (await server.raw.post(f"/v1/adapters/support/versions/{number}/load")).json()["error"] for number in (2, 3)
    ]
    assert (retired["code"], unknown["code"]) == ("version_not_ready", "model_not_found")


async def test_retiring_waits_for_running_requests_then_frees_engine_and_files(server: Running) -> None:
    await brought(server, 1)
    second = await brought(server, 2)
    folder = server.home / "adapters" / f"sha256-{second['digest']}"
    server.pool.behaviour.hold = asyncio.Event()
    stream = await server.ask("support@2", stream=True)
    words = [(await anext(stream)).choices[0].delta.content]
    refused = await server.raw.delete("/v1/adapters/support/versions/1")
    assert refused.json()["error"]["code"] == "version_in_use"
    retired = await server.raw.delete("/v1/adapters/support/versions/2")
    assert retired.json()["state"] == "retiring"
    with pytest.raises(openai.NotFoundError):
        await server.ask("support@2")
    await server.server.collect()
    assert folder.exists(), "a request still runs on it"
    server.pool.behaviour.hold.set()
    words += [chunk.choices[0].delta.content async for chunk in stream]
    assert set(words) == {word_of(second["digest"])}

    async def collected() -> bool:
        await server.server.collect()
        return not folder.exists()

    await eventually(collected)
    assert second["digest"] not in await server.pool.residency()
    assert (await server.raw.get("/v1/adapters/support/versions/2")).json()["state"] == "retired"


async def test_a_deleted_adapter_answers_404_and_its_name_can_be_used_again(server: Running) -> None:
    await brought(server, 1)
    gone = await server.raw.delete("/v1/adapters/support")
    assert gone.json() == {"id": "support", "object": "adapter", "deleted": True}
    with pytest.raises(openai.NotFoundError):
        await server.ask("support")
    assert (await server.raw.get("/v1/adapters/support")).status_code == 404
    assert (await brought(server, 3))["version"] == 2


async def test_lists_page_and_show_aliases(server: Running) -> None:
    for name in ("a", "b", "c"):
        await brought(server, 1, name)
    first = (await server.raw.get("/v1/adapters", params={"limit": 2})).json()
    assert [one["name"] for one in first["data"]] == ["c", "b"]
    rest = (await server.raw.get("/v1/adapters", params={"after": first["last_id"]})).json()
    assert [one["name"] for one in rest["data"]] == ["a"]
    assert rest["data"][0]["aliases"][0]["alias"] == "production"
    await brought(server, 2, "a")
    versions = (await server.raw.get("/v1/adapters/a/versions", params={"limit": 1})).json()
    assert [one["version"] for one in versions["data"]] == [2]
    older = (await server.raw.get("/v1/adapters/a/versions", params={"after": versions["last_id"]})).json()
    assert [one["version"] for one in older["data"]] == [1]
    assert (await server.raw.get("/v1/adapters/a/versions", params={"after": "x"})).status_code == 400


async def test_the_serving_profile_travels_with_the_version_and_is_part_of_its_digest(server: Running) -> None:
    plain = await brought(server, 1)
    profiled = await brought(server, 1, serving={"system_prompt": "Be brief.", "stop": ["END"]})
    assert profiled["serving"]["system_prompt"] == "Be brief."
    assert plain["digest"] != profiled["digest"]
    pinned = server.server.catalog.resolve("default", "support@2")
    assert pinned.profile is not None
    assert pinned.profile.stop == ("END",)
    bad = await bring(server, serving={"sampling": {"temperature": "hot"}})
    assert bad.status_code == 400
    assert bad.json()["error"]["param"].startswith("serving.sampling.temperature")


async def test_a_second_server_on_the_same_registry_follows_a_promote(server: Running, tmp_path: Path) -> None:
    await brought(server, 1)
    await brought(server, 2)
    async with running(tmp_path, registry=server.server.registry) as other:
        assert (await other.ask("support")).model == "support@1"
        await put(server, "support/aliases/production", {"version": 2})

        async def followed() -> bool:
            return bool((await other.ask("support")).model == "support@2")

        await eventually(followed, 2.0)


async def test_what_a_second_server_still_answers_with_keeps_its_files(server: Running, tmp_path: Path) -> None:
    await brought(server, 1)
    second = await brought(server, 2)
    folder = server.home / "adapters" / f"sha256-{second['digest']}"
    registry = await asyncio.to_thread(Registry.open, Home(tmp_path))
    async with running(tmp_path, registry=registry) as other:
        other.pool.behaviour.hold = asyncio.Event()
        stream = await other.ask("support@2", stream=True)
        await anext(stream)
        await server.raw.delete("/v1/adapters/support/versions/2")
        await other.server.watcher.look()
        await other.server.hold()
        await server.server.collect()
        assert folder.exists(), "a request of the other server still runs on it"
        other.pool.behaviour.hold.set()
        assert {chunk.choices[0].delta.content async for chunk in stream} == {word_of(second["digest"])}

        async def collected() -> bool:
            await other.server.reconciler.evict_unoffered(other.server.catalog.snapshot)
            await other.server.hold()
            await server.server.collect()
            return not folder.exists()

        await eventually(collected)
    registry.close()
