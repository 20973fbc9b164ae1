"""Versions, aliases, pins, states and collection through the real registry, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from hashlib import sha256
from pathlib import Path

import pytest
from sqlalchemy import event
from support.adapters import facts, imported_parts, make_prepared, prepare_folder, write_lora
from support.shelf import Shelf
from tunedock_api.errors import BadInput, Conflict, NotFound, Rejected, Unavailable
from tunedock_api.manifest import Manifest, Probe, ProbeExample
from tunedock_api.names import parse_ref
from tunedock_registry.adapters.folders import is_intact
from tunedock_registry.adapters.snapshot import Snapshot
from tunedock_registry.records import Attempt, Claim, JobResult, JobSpec, ReadyVersion, Target, VersionRecord

REPORT = {
    "num_examples": 24,
    "previous": None,
    "base_metrics": {"loss": 2.0},
    "new_metrics": {"loss": 1.5},
    "vs_base": {"loss": {"mean": -0.5, "low": -0.75, "high": -0.25}},
    "forgetting": {"general_loss_change": 0.0125, "num_texts": 6},
}


@pytest.fixture
def shelf(fast_folder: Path, database_url: str | None) -> Iterator[Shelf]:
    shelf = Shelf.open(fast_folder, database_url)
    yield shelf
    shelf.registry.close()


def _resolve(snapshot: Snapshot, ref: str, key: str | None = None) -> ReadyVersion | None:
    parsed = parse_ref(ref)
    assert parsed is not None
    return snapshot.resolve("default", parsed, key)


def _means(snapshot: Snapshot, ref: str, version: VersionRecord) -> bool:
    """Whether the reference stands for that version, with everything that serving asks of it."""
    found = _resolve(snapshot, ref)
    shared = [field.name for field in fields(ReadyVersion)]
    return found is not None and all(getattr(found, name) == getattr(version, name) for name in [*shared, "ref"])


def test_a_version_is_read_by_one_query(shelf: Shelf) -> None:
    """Streams pay for every further one."""
    shelf.publish()
    queries: list[str] = []
    event.listen(shelf.registry.db.engines.reader, "before_cursor_execute", lambda *said: queries.append(said[2]))
    shelf.registry.adapters.version("default", "support", 1)
    assert sum(query.startswith("SELECT") for query in queries) == 1


def test_a_published_version_is_a_peft_folder_named_by_its_digest(shelf: Shelf) -> None:
    version = shelf.publish()
    folder = shelf.registry.adapters.path(version)
    assert folder.name == f"sha256-{version.digest}"
    names = {path.name for path in folder.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "manifest.json", "README.md"}
    assert is_intact(folder, version.digest)
    assert (version.ref, version.state, version.number) == ("support@1", "published", 1)
    assert not list(shelf.registry.home.tmp.iterdir())


def test_the_weights_are_the_authors_bytes(shelf: Shelf) -> None:
    version = shelf.publish(seed=5)
    source = (shelf.folder / "lora-5" / "adapter_model.safetensors").read_bytes()
    with shelf.registry.adapters.open_file(version, "adapter_model.safetensors") as stream:
        assert stream.read() == source
    assert version.manifest.identity.files["adapter_model.safetensors"].sha256 == sha256(source).hexdigest()


@pytest.mark.parametrize("name", ["../../tunedock.db", "adapter_model.bin", "", "/etc/passwd"])
def test_nothing_but_the_four_files_can_be_downloaded(shelf: Shelf, name: str) -> None:
    with pytest.raises(NotFound):
        shelf.registry.adapters.open_file(shelf.publish(), name)


def test_card_and_manifest_are_handed_out_with_the_evaluation_of_a_job_s_version(shelf: Shelf) -> None:
    adapters = shelf.registry.adapters
    made = adapters.publish("default", "support", shelf.prepare(4), origin="trained", claim=_claim(shelf))
    imported = shelf.publish(seed=4)
    assert made.digest == imported.digest
    for version in (made, imported):
        adapters.add_metrics(version.id, {"evaluation": REPORT})
    for name in ("README.md", "manifest.json"):
        plain = (adapters.path(made) / name).read_bytes()
        with adapters.open_file(adapters.by_id(made.id), name) as measured:
            assert measured.read() != plain
        with adapters.open_file(adapters.by_id(imported.id), name) as claimed:
            assert claimed.read() == plain
    with adapters.open_file(adapters.by_id(made.id), "manifest.json") as stream:
        manifest = Manifest.model_validate_json(stream.read())
    assert manifest.metrics["evaluation"] == REPORT
    assert manifest.identity.digest() == made.digest


def test_numbers_count_up_and_the_same_bytes_may_be_published_twice(shelf: Shelf) -> None:
    first, second = shelf.publish(seed=1), shelf.publish(seed=1)
    assert (first.number, second.number) == (1, 2)
    assert first.digest == second.digest
    assert shelf.registry.adapters.get("default", "support").latest == 2


def test_weights_that_changed_after_the_check_are_refused_and_leave_nothing(shelf: Shelf) -> None:
    source = make_prepared(shelf.folder / "lora", facts(shelf.folder / "base"))
    source.weights.write_bytes(b"\0" * 100)
    with pytest.raises(Rejected, match="changed after it was checked"):
        shelf.registry.adapters.publish("default", "support", source, origin="imported")
    assert not list(shelf.registry.home.adapters.iterdir())
    assert not list(shelf.registry.home.tmp.iterdir())


def test_a_damaged_folder_is_replaced_by_publishing_the_same_bytes_again(shelf: Shelf) -> None:
    version = shelf.publish()
    weights = shelf.registry.adapters.path(version) / "adapter_model.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(b"broken")
    again = shelf.publish()
    assert again.digest == version.digest
    assert is_intact(shelf.registry.adapters.path(again), again.digest)


def test_an_idempotency_key_returns_the_first_version(shelf: Shelf) -> None:
    source = make_prepared(shelf.folder / "lora", facts(shelf.folder / "base"))
    attempt = Attempt(key="k", body_sha256=source.digest)
    adapters = shelf.registry.adapters
    first = adapters.publish("default", "support", source, origin="imported", attempt=attempt)
    assert adapters.publish("default", "support", source, origin="imported", attempt=attempt) == first
    assert len(adapters.versions("default", "support").items) == 1


def test_the_probe_is_kept_but_left_out_of_lists(shelf: Shelf) -> None:
    example = ProbeExample(
        token_ids=(1, 2), start=1, adapter_logprobs=(-0.5,), base_logprobs=(-1.5,), adapter_top1=(2,)
    )
    probe = Probe(dtype="bfloat16", examples=(example,))
    folder = write_lora(shelf.folder / "lora")
    source = prepare_folder(folder, facts(shelf.folder / "base"), imported_parts(probe=probe))
    adapters = shelf.registry.adapters
    version = adapters.publish("default", "support", source, origin="imported")
    assert adapters.by_id(version.id).manifest.probe == probe
    assert adapters.pending()[0].manifest.probe == probe
    assert adapters.versions("default", "support").items[0].manifest.probe is None
    manifest = json.loads((adapters.path(version) / "manifest.json").read_bytes())
    assert manifest["probe"]["examples"][0]["token_ids"] == [1, 2]


def _claim(shelf: Shelf) -> Claim:
    jobs = shelf.registry.jobs
    job = jobs.create("default", JobSpec(model="tiny", training_file="file-1", adapter="support"))
    jobs.mark_validated(job.id)
    claim = jobs.claim("worker")
    assert claim is not None
    return claim


def test_a_jobs_result_and_its_success_are_one_and_come_once(shelf: Shelf) -> None:
    jobs, adapters = shelf.registry.jobs, shelf.registry.adapters
    claim = _claim(shelf)
    source = make_prepared(shelf.folder / "lora", facts(shelf.folder / "base"))

    version = adapters.publish(
        "default", "support", source, origin="trained", claim=claim, job_result=JobResult(trained_tokens=7)
    )
    done = jobs.get("default", claim.job.id)

    assert (done.status, done.fine_tuned_model, done.version_id) == ("succeeded", "support@1", version.id)
    assert done.trained_tokens == 7
    assert version.job_id == claim.job.id
    assert adapters.publish("default", "support", source, origin="trained", claim=claim) == version


def test_a_worker_that_lost_its_job_publishes_nothing(shelf: Shelf) -> None:
    jobs, adapters = shelf.registry.jobs, shelf.registry.adapters
    claim = _claim(shelf)
    jobs.request_cancel("default", claim.job.id)
    source = make_prepared(shelf.folder / "lora", facts(shelf.folder / "base"))
    with pytest.raises(Conflict) as caught:
        adapters.publish("default", "support", source, origin="trained", claim=claim)
    assert caught.value.code == "stale_lease"
    with pytest.raises(NotFound):
        adapters.get("default", "support")


def test_a_checkpoint_is_a_version_with_a_tag_and_keeps_its_first_meaning(shelf: Shelf) -> None:
    jobs, adapters = shelf.registry.jobs, shelf.registry.adapters
    claim = _claim(shelf)
    base = facts(shelf.folder / "base")
    sources = [make_prepared(shelf.folder / f"lora-{seed}", base, seed) for seed in (1, 2)]

    first, again = (
        adapters.publish("default", "support", source, origin="checkpoint", claim=claim, checkpoint_step=40)
        for source in sources
    )

    tag = f"ckpt-{claim.job.id.removeprefix('ftjob-')[:8]}-40"
    assert (first.number, first.tag, first.ref) == (None, tag, f"support@{tag}")
    assert again == first
    assert jobs.checkpoints("default", claim.job.id).items[0].version_id == first.id
    assert adapters.by_tag("default", "support", tag) == first
    assert adapters.get("default", "support").latest is None


def test_an_adapter_keeps_its_base_model(shelf: Shelf) -> None:
    shelf.publish()
    other = facts(shelf.folder / "base")
    other = other.model_copy(update={"identity": other.identity.model_copy(update={"id": "other"})})
    source = make_prepared(shelf.folder / "lora", other, 2)
    with pytest.raises(Conflict, match="belongs to base model 'tiny'"):
        shelf.registry.adapters.publish("default", "support", source, origin="imported")


def test_the_states_go_forward_only(shelf: Shelf) -> None:
    adapters, version = shelf.registry.adapters, shelf.publish()
    with pytest.raises(Conflict) as caught:
        adapters.set_state(version.id, "ready")
    assert caught.value.code == "invalid_state"
    adapters.set_state(version.id, "verifying")
    rejected = adapters.set_state(version.id, "rejected", reason="no effect", parity={"delta": 0.0})
    assert (rejected.reason, rejected.parity) == ("no effect", {"delta": 0.0})
    assert adapters.set_state(version.id, "rejected", reason="again").reason == "no effect"
    with pytest.raises(Conflict):
        adapters.set_state(version.id, "ready")


def test_pending_versions_are_those_that_wait_for_the_gate(shelf: Shelf) -> None:
    adapters = shelf.registry.adapters
    first, second, third = (shelf.publish(seed=seed) for seed in (1, 2, 3))
    adapters.set_state(second.id, "verifying")
    adapters.set_state(third.id, "rejected", reason="broken")
    assert [version.id for version in adapters.pending()] == [first.id, second.id]


def test_an_alias_points_to_ready_versions_only(shelf: Shelf) -> None:
    shelf.publish()
    with pytest.raises(Conflict) as caught:
        shelf.promote(1)
    assert caught.value.code == "version_not_ready"
    with pytest.raises(Conflict):
        shelf.promote(2)


@pytest.mark.parametrize("alias", ["7", "ckpt-abcdefgh-1", "Production", "a/b", ""])
def test_an_alias_needs_a_legal_name(shelf: Shelf, alias: str) -> None:
    shelf.ready()
    with pytest.raises(BadInput):
        shelf.promote(1, alias=alias)


def test_promote_and_rollback_move_the_snapshot_and_are_on_record(shelf: Shelf) -> None:
    adapters = shelf.registry.adapters
    for seed in (1, 2):
        shelf.ready(seed=seed)
        adapters.set_alias("default", "support", "production", [Target(seed)], seed - 1, "anna", f"try {seed}")
    assert _means(adapters.snapshot(), "support", adapters.by_id(2))
    adapters.rollback("default", "support", "production", "ben", "worse")
    after = _resolve(adapters.snapshot(), "support")
    assert after is not None
    assert after.ref == "support@1"

    moves = adapters.history("default", "support").items
    assert [(move.revision, move.actor, move.reason) for move in moves] == [
        (3, "ben", "worse"),
        (2, "anna", "try 2"),
        (1, "anna", "try 1"),
    ]
    assert (moves[0].before, moves[0].after) == ((Target(2),), (Target(1),))
    assert moves[2].before is None
    page = adapters.history("default", "support", limit=2)
    assert page.has_more
    assert adapters.history("default", "support", after=page.items[-1].id).items == moves[2:]


def test_a_canary_is_sticky_by_key_and_gets_its_share(shelf: Shelf) -> None:
    for seed in (1, 2):
        shelf.ready(seed=seed)
    shelf.registry.adapters.set_alias("default", "support", "production", [Target(1, 90), Target(2, 10)])
    snapshot = shelf.registry.adapters.snapshot()
    numbers = [_resolve(snapshot, "support", f"user-{n}") for n in range(3_000)]
    assert numbers == [_resolve(snapshot, "support", f"user-{n}") for n in range(3_000)]
    share = sum(version is not None and version.number == 2 for version in numbers) / 3_000
    assert share == pytest.approx(0.1, abs=0.02)
    assert len({str(_resolve(snapshot, "support")) for _ in range(200)}) == 2


def test_a_snapshot_does_not_change_and_is_reused_while_nothing_happens(shelf: Shelf) -> None:
    adapters = shelf.registry.adapters
    version = shelf.ready()
    before = adapters.snapshot()
    assert adapters.snapshot() is before
    shelf.promote(1)
    assert _resolve(before, "support") is None
    assert _means(adapters.snapshot(), "support", version)
    assert _means(adapters.snapshot(), "support@1", version)
    for unknown in ("support@2", "support@canary", "other", "support@ckpt-aaaaaaaa-1"):
        assert _resolve(adapters.snapshot(), unknown) is None
    parsed = parse_ref("support")
    assert parsed is not None
    assert adapters.snapshot().resolve("another-project", parsed) is None


def test_versions_that_are_not_ready_cannot_be_asked_for(shelf: Shelf) -> None:
    version = shelf.publish()
    assert _resolve(shelf.registry.adapters.snapshot(), "support@1") is None
    shelf.registry.adapters.set_state(version.id, "verifying")
    assert _resolve(shelf.registry.adapters.snapshot(), "support@1") is None


def test_every_change_that_a_server_must_notice_moves_the_counter(shelf: Shelf) -> None:
    registry, seen = shelf.registry, []

    def note() -> None:
        seen.append(registry.change_counter())

    note()
    version = shelf.publish()
    note()
    registry.adapters.set_state(version.id, "verifying")
    registry.adapters.set_state(version.id, "ready")
    note()
    shelf.promote(1)
    note()
    registry.adapters.set_pin(version.id, True)
    note()
    assert seen == sorted(set(seen))
    registry.adapters.set_pin(version.id, True)
    shelf.promote(1)
    assert registry.change_counter() == seen[-1]


def test_only_ready_versions_can_be_pinned(shelf: Shelf) -> None:
    version = shelf.publish()
    with pytest.raises(Conflict):
        shelf.registry.adapters.set_pin(version.id, True)
    ready = shelf.ready(seed=2)
    assert shelf.registry.adapters.set_pin(ready.id, True).pinned
    resolved = _resolve(shelf.registry.adapters.snapshot(), "support@2")
    assert resolved is not None
    assert resolved.pinned


def test_a_version_in_use_by_an_alias_cannot_be_retired(shelf: Shelf) -> None:
    adapters = shelf.registry.adapters
    first, second = shelf.ready(seed=1), shelf.ready(seed=2)
    shelf.promote(1)
    with pytest.raises(Conflict) as caught:
        adapters.retire(first.id)
    assert caught.value.code == "version_in_use"
    shelf.promote(2)
    assert adapters.retire(first.id, "old").state == "retiring"
    assert _resolve(adapters.snapshot(), "support@1") is None
    with pytest.raises(Conflict):
        adapters.rollback("default", "support", "production")
    assert _means(adapters.snapshot(), "support", second)


def test_files_go_after_the_grace_time_when_nobody_uses_them(shelf: Shelf) -> None:
    adapters, version = shelf.registry.adapters, shelf.ready()
    folder = adapters.path(version)
    adapters.retire(version.id)
    assert adapters.collect(grace_s=60) == []
    shelf.time.wall_s += 61
    assert adapters.collect({version.digest}, grace_s=60) == []
    assert folder.exists()
    assert [record.ref for record in adapters.collect(grace_s=60)] == ["support@1"]
    assert not folder.exists()
    assert not list(shelf.registry.home.tmp.iterdir())
    assert adapters.by_id(version.id).state == "retired"
    with pytest.raises(Unavailable) as caught:
        adapters.path(version)
    assert caught.value.code == "adapter_unavailable"


def test_files_stay_while_another_version_has_the_same_bytes(shelf: Shelf) -> None:
    adapters = shelf.registry.adapters
    first, second = shelf.ready(seed=1), shelf.ready("other", seed=1)
    adapters.retire(first.id)
    shelf.time.wall_s += 1_000
    adapters.collect()
    assert is_intact(adapters.path(second), second.digest)


def test_a_folder_without_a_version_is_garbage_after_the_grace_time(shelf: Shelf) -> None:
    registry = shelf.registry
    source = make_prepared(shelf.folder / "lora", facts(shelf.folder / "base"))
    folder = registry.home.adapter_dir(source.digest)
    registry.adapters.publish("default", "support", source, origin="imported")
    folder.rename(registry.home.adapters / ("sha256-" + "0" * 64))
    (registry.home.tmp / "publish-crashed").mkdir()
    shelf.time.wall_s = folder.parent.stat().st_mtime
    registry.adapters.collect(grace_s=60)
    assert len(list(registry.home.adapters.iterdir())) == 1
    shelf.time.wall_s += 120
    registry.adapters.collect(grace_s=60)
    assert not list(registry.home.adapters.iterdir())
    assert not list(registry.home.tmp.iterdir())


def test_a_deleted_adapter_is_gone_and_its_numbers_are_not_used_again(shelf: Shelf) -> None:
    adapters = shelf.registry.adapters
    shelf.ready(seed=1)
    shelf.promote(1)
    adapters.delete_adapter("default", "support", "anna", "cleaning")
    with pytest.raises(NotFound):
        adapters.get("default", "support")
    assert adapters.list("default").items == []
    assert _resolve(adapters.snapshot(), "support") is None
    assert [version.ref for version in adapters.retiring()] == ["support@1"]

    version = shelf.publish(seed=1)
    assert version.ref == "support@2"
    assert adapters.aliases("default", "support") == []
    assert adapters.history("default", "support").items[0].after == ()


def test_names_belong_to_projects(shelf: Shelf) -> None:
    adapters = shelf.registry.adapters
    shelf.publish()
    source = make_prepared(shelf.folder / "lora-1", facts(shelf.folder / "base"))
    assert adapters.publish("other", "support", source, origin="imported").number == 1
    assert [record.name for record in adapters.list("other").items] == ["support"]
    with pytest.raises(NotFound):
        adapters.get("third", "support")


def test_lists_page_from_the_newest_on(shelf: Shelf) -> None:
    adapters = shelf.registry.adapters
    for name in ("a", "b", "c"):
        shelf.publish(name)
    page = adapters.list("default", limit=2)
    assert ([record.name for record in page.items], page.has_more) == (["c", "b"], True)
    rest = adapters.list("default", after="b", limit=2)
    assert ([record.name for record in rest.items], rest.has_more) == (["a"], False)
    with pytest.raises(BadInput):
        adapters.list("default", after="nothing")


def test_a_restart_finds_everything_as_it_was(shelf: Shelf, database_url: str | None) -> None:
    version = shelf.ready()
    shelf.promote(1)
    shelf.registry.adapters.set_pin(version.id, True)
    again = Shelf.open(shelf.folder, database_url)
    assert again.registry.adapters.by_id(version.id) == shelf.registry.adapters.by_id(version.id)
    assert _resolve(again.registry.adapters.snapshot(), "support") is not None
    again.registry.close()
