"""Files and adapters through the client, against the real server with a fake engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_server import BASE, FakeServer
from tunedock import BadInput, Conflict, DeadlineExceeded, NotFound, Rejected, TuneDock
from tunedock_registry.records import Target

ROWS = [{"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]}] * 12


def test_a_file_is_uploaded_validated_read_back_and_deleted(client: TuneDock) -> None:
    file = client.files.wait(client.files.upload(ROWS).id, poll_s=0.02)
    assert file.status == "processed"
    assert b"".join(client.files.content(file.id)).splitlines()[0] == json.dumps(ROWS[0]).encode()
    client.files.delete(file.id)
    with pytest.raises(NotFound):
        client.files.get(file.id)


def test_a_bad_file_is_refused_with_every_line(client: TuneDock, tmp_path: Path) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text(json.dumps(ROWS[0]) + "\nnope\n{}\n")
    with pytest.raises(BadInput, match=r"(?s)bad\.jsonl was refused.*Example 2.*Example 3"):
        client.files.wait(client.files.upload(data).id, poll_s=0.02)


def test_lists_walk_all_pages(client: TuneDock) -> None:
    made = [client.files.upload(ROWS, purpose="evals").id for _ in range(3)]
    assert [file.id for file in client.files.list(purpose="evals")] == made[::-1]
    assert len(client.files.list(limit=2, purpose="evals")) == 2


def test_content_of_an_unknown_file_is_not_found(client: TuneDock) -> None:
    with pytest.raises(NotFound):
        list(client.files.content("file-" + "a" * 24))


def test_versions_move_by_promote_and_rollback(client: TuneDock, live: FakeServer) -> None:
    live.ready("moved", seed=21)
    live.ready("moved", seed=22, production=False)
    assert client.adapters.get("moved").alias("production").shown == "1"  # type: ignore[union-attr]
    moved = client.adapters.promote("moved@2", reason="better")
    assert moved.shown == "2"
    assert client.chat("hi", model="moved").model == "moved@2"
    assert client.adapters.rollback("moved").shown == "1"
    assert client.chat("hi", model="moved").model == "moved@1"
    assert "better" in {entry.reason for entry in client.adapters.history("moved")}


def test_a_verdict_is_waited_for(client: TuneDock, live: FakeServer) -> None:
    published = client.adapters.publish("judged", live.peft_folder(31))
    version = client.adapters.verdict(published.ref)
    assert (version.ref, version.state) == ("judged@1", "ready")
    assert client.chat("hi", model="judged@1").model == "judged@1"


@pytest.fixture
def slow(live: FakeServer) -> Iterator[FakeServer]:
    """Its loads take longer than it takes to say something about the version meanwhile."""
    live.pool.behaviour.load_s = 1.0
    yield live
    live.pool.behaviour.load_s = 0.0


def test_a_rejection_is_an_error_with_its_reason(client: TuneDock, slow: FakeServer) -> None:
    published = client.adapters.publish("futile", slow.peft_folder(32))
    slow.pool.behaviour.same_as_base.add(published.digest)
    with pytest.raises(Rejected, match=r"futile@1.*no effect"):
        client.adapters.verdict(published.ref)


def test_a_version_that_is_offered_no_more_has_no_verdict(client: TuneDock, live: FakeServer) -> None:
    live.ready("gone", seed=34)
    version = live.ready("gone", seed=35)
    live.registry.adapters.set_alias("default", "gone", "production", [Target(1)])
    live.registry.adapters.retire(version.id)
    with pytest.raises(Conflict, match="gone@2 is reti"):
        client.adapters.verdict("gone@2")


def test_a_verdict_that_does_not_come_is_a_deadline(client: TuneDock, slow: FakeServer) -> None:
    published = client.adapters.publish("late", slow.peft_folder(33))
    with pytest.raises(DeadlineExceeded, match="late@1 is still"):
        client.adapters.verdict(published.ref, timeout_s=0.2)


def test_an_alias_can_be_promoted_to_another(client: TuneDock, live: FakeServer) -> None:
    live.ready("copied", seed=23)
    client.adapters.promote("copied@production", alias="canary")
    assert client.adapters.version("copied@canary").ref == "copied@1"


def test_a_stale_revision_is_a_conflict_that_tells_the_state(client: TuneDock, live: FakeServer) -> None:
    live.ready("raced", seed=24)
    with pytest.raises(Conflict) as caught:
        client.adapters.promote("raced@1", expected_revision=99)
    assert caught.value.code == "alias_conflict"


def test_an_alias_can_be_split_by_weight(client: TuneDock, live: FakeServer) -> None:
    live.ready("split", seed=25)
    live.ready("split", seed=26)
    assert client.adapters.split("split", {1: 90, 2: 10}, alias="canary").shown == "1:90 2:10"
    with pytest.raises(BadInput, match="several versions"):
        client.adapters.version("split@canary")


def test_a_load_brings_a_version_into_the_engine(client: TuneDock, live: FakeServer) -> None:
    version = live.ready("loaded", seed=28)
    live.run(live.server.residents.evict(version.digest))
    assert client.adapters.version("loaded@1").residency == "stored"
    assert client.adapters.load("loaded@1").residency == "slot"
    assert client.adapters.load("loaded@1").residency == "slot"
    with pytest.raises(NotFound):
        client.adapters.load("loaded@9")


def test_a_pin_keeps_a_version_in_a_slot(client: TuneDock, live: FakeServer) -> None:
    live.ready("pinned", seed=27)
    assert client.adapters.pin("pinned@1").pinned
    assert client.adapters.version("pinned@1").residency == "pinned"
    assert not client.adapters.unpin("pinned@1").pinned


def test_a_download_is_a_peft_folder(client: TuneDock, live: FakeServer, tmp_path: Path) -> None:
    version = live.ready("fetched", seed=28)
    folder = client.adapters.download("fetched", tmp_path / "out")
    assert json.loads((folder / "adapter_config.json").read_bytes())["r"] == 4
    assert json.loads((folder / "manifest.json").read_bytes())["digest"] == version.digest
    assert not list(folder.glob("*.part"))
    with pytest.raises(BadInput, match="already holds an adapter"):
        client.adapters.download("fetched", folder)


def test_what_is_no_reference_is_refused_before_any_request(client: TuneDock) -> None:
    with pytest.raises(BadInput, match="not a reference"):
        client.adapters.promote("../x@1")


def test_unknown_adapters_versions_and_aliases_are_not_found(client: TuneDock, live: FakeServer) -> None:
    live.ready("known", seed=29)
    for ref in ("unknown@1", "known@9", "known@nowhere"):
        with pytest.raises(NotFound):
            client.adapters.version(ref)


def test_models_list_the_base_first_and_name_it_as_parent(client: TuneDock, live: FakeServer) -> None:
    live.ready("listed", seed=30)
    models = client.models()
    assert (models[0].id, models[0].parent) == (BASE, None)
    assert {model.id: model.parent for model in models}["listed@1"] == BASE
