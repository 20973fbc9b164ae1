"""What changed between two versions."""

from __future__ import annotations

from typing import Any

from support.fake_server import FakeServer
from tunedock import TuneDock
from tunedock.diff import Difference, differences

BEFORE: dict[str, Any] = {
    "digest": "a",
    "identity": {"base_model": {"id": "base"}, "serving": {"stop": []}, "files": {"x": 1}},
    "lora": {"rank": 8},
    "lineage": {"datasets": {"file-1": "sha"}, "seed": 1},
    "training": {"hyperparameters": {"n_epochs": 2}},
    "metrics": {"valid_loss": 0.5, "delta_norms": {"q": 3.0, "v": 4.0}},
    "probe": {"examples": [1]},
}


def test_equal_versions_differ_in_nothing() -> None:
    assert [one for one in differences(BEFORE, BEFORE) if one.before != one.after] == []


def test_every_section_is_compared_and_numbers_have_a_change() -> None:
    after = {
        **BEFORE,
        "digest": "b",
        "probe": None,
        "lora": {"rank": 16},
        "lineage": {"datasets": {"file-2": "sha"}, "seed": 1},
        "training": {"hyperparameters": {"n_epochs": 3}},
        "metrics": {"valid_loss": 0.25, "delta_norms": {"q": 3.0, "v": 0.0}},
    }
    found = {(one.section, one.field): one for one in differences(BEFORE, after)}
    assert found["config", "rank"] == Difference("config", "rank", 8, 16)
    assert found["config", "hyperparameters.n_epochs"].change == 1
    assert found["data", "datasets.file-1"].after is None
    assert found["metrics", "valid_loss"].change == -0.25
    assert found["weights", "norm of the change"] == Difference("weights", "norm of the change", 5.0, 3.0)
    assert found["weights", "v"].change == -4.0
    assert ("weights", "q") not in found


def test_two_real_versions_differ_in_their_weights(client: TuneDock, live: FakeServer) -> None:
    live.ready("differs", seed=51)
    live.ready("differs", seed=52)
    sections = {one.section for one in client.adapters.diff("differs@1", "differs@2")}
    assert sections == {"weights"}


def test_watching_an_adapter_tells_every_change(client: TuneDock, live: FakeServer) -> None:
    live.ready("followed", seed=53)
    seen = client.adapters.watch("followed", poll_s=0.05)
    assert next(seen).latest_version == 1
    live.ready("followed", seed=54)
    while next(seen).latest_version != 2:
        pass
