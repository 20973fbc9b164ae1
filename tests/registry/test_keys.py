from __future__ import annotations

from collections.abc import Mapping

import pytest
from support.registry import FakeTime
from tunedock_api.errors import BadInput, NotFound, Unauthenticated
from tunedock_registry.keys import KeyRecord, digest
from tunedock_registry.registry import Registry


def _valid(registry: Registry) -> Mapping[str, KeyRecord]:
    known = registry.known()
    assert known is not None
    return known.keys


def test_a_key_is_recognised_with_its_project_and_scopes(registry: Registry) -> None:
    new = registry.keys.create("acme", "laptop", ["files", "inference", "files"], limits={"rpm": 60})
    assert new.secret.startswith("td-")
    assert len(new.secret) == 46
    assert new.secret.startswith(new.record.prefix)
    assert (new.record.project, new.record.scopes, new.record.limits) == ("acme", ("files", "inference"), {"rpm": 60})
    assert registry.keys.verify(new.secret) == new.record
    assert _valid(registry) == {digest(new.secret): new.record}


def test_the_secret_is_stored_nowhere_and_never_shown_by_accident(registry: Registry) -> None:
    new = registry.keys.create("acme", "laptop", ["files"])
    assert new.secret not in repr(new)
    for path in registry.home.root.rglob("*"):
        if path.is_file():
            assert new.secret.encode() not in path.read_bytes()


def test_wrong_expired_and_revoked_keys_get_the_same_answer(registry: Registry, time: FakeTime) -> None:
    expired = registry.keys.create("acme", "a", ["files"], expires_after_s=10)
    revoked = registry.keys.create("acme", "b", ["files"])
    time.advance(10)
    registry.keys.revoke("acme", revoked.record.id)
    answers = set()
    for secret in ("td-wrong", "", expired.secret, revoked.secret, revoked.secret[:-1]):
        with pytest.raises(Unauthenticated) as caught:
            registry.keys.verify(secret)
        answers.add((caught.value.message, caught.value.code))
    assert len(answers) == 1
    assert _valid(registry) == {}


def test_a_revoked_key_stays_in_the_list_and_servers_notice_at_once(registry: Registry) -> None:
    new = registry.keys.create("acme", "a", ["files"])
    before = registry.change_counter()
    revoked = registry.keys.revoke("acme", new.record.id)
    assert registry.change_counter() > before
    assert registry.keys.revoke("acme", new.record.id) == revoked
    assert registry.keys.list("acme").items == [revoked]
    assert revoked.revoked_at is not None


def test_keys_are_their_projects_own(registry: Registry) -> None:
    new = registry.keys.create("acme", "a", ["files"])
    assert registry.keys.list("other").items == []
    for project, key_id in (("other", new.record.id), ("acme", "key_missing")):
        with pytest.raises(NotFound):
            registry.keys.revoke(project, key_id)
    registry.keys.verify(new.secret)


def test_a_key_that_makes_no_sense_is_refused(registry: Registry) -> None:
    for project, name, scopes in (("Not a project", "a", ["files"]), ("p", "", ["files"]), ("p", "a", [])):
        with pytest.raises(BadInput):
            registry.keys.create(project, name, scopes)
