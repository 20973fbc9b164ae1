from __future__ import annotations

import pytest
from support.registry import claimed_job
from tunedock_api.errors import BadInput, NotFound
from tunedock_registry.registry import Registry


def checkpoint(registry: Registry) -> str:
    return registry.jobs.add_checkpoint(claimed_job(registry), 10, 3, {}).fine_tuned_model_checkpoint


def test_a_checkpoint_can_be_lent_listed_and_taken_back(registry: Registry) -> None:
    ref = checkpoint(registry)
    made = registry.permissions.create("default", ref, ["a", "b", "a"])
    assert [(item.project_id, item.version_id) for item in made] == [("a", 3), ("b", 3)]
    assert registry.permissions.list("default", ref).items == [made[1], made[0]]
    assert registry.permissions.list("default", ref, after=made[1].id, limit=1).items == [made[0]]
    assert registry.permissions.list("default", ref, order="asc", project_id="b").items == [made[1]]
    assert _lent(registry, "a") == {ref: 3}
    registry.permissions.delete("default", ref, made[0].id)
    assert _lent(registry, "a") == {}
    assert _lent(registry, "b") == {ref: 3}


def _lent(registry: Registry, project: str) -> dict[str, int]:
    known = registry.known()
    assert known is not None
    return {ref: version_id for (borrower, ref), version_id in known.lent.items() if borrower == project}


def test_lending_again_changes_nothing(registry: Registry) -> None:
    ref = checkpoint(registry)
    assert registry.permissions.create("default", ref, ["a"]) == registry.permissions.create("default", ref, ["a"])


def test_only_ones_own_checkpoints_can_be_lent(registry: Registry) -> None:
    ref = checkpoint(registry)
    for project, name in (("other", ref), ("default", "support@ckpt-00000000-1")):
        with pytest.raises(NotFound):
            registry.permissions.create(project, name, ["a"])
        with pytest.raises(NotFound):
            registry.permissions.list(project, name)
        with pytest.raises(NotFound):
            registry.permissions.delete(project, name, "cp_missing")


def test_an_illegal_project_is_refused(registry: Registry) -> None:
    ref = checkpoint(registry)
    with pytest.raises(BadInput) as caught:
        registry.permissions.create("default", ref, ["a", "Not/legal"])
    assert caught.value.param == "project_ids"
    assert registry.permissions.list("default", ref).items == []
