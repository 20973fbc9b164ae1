"""`tunedock adapters fetch` against a small hub: the pinned commit's bytes, whole and true, or one clear error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.adapters import write_lora
from support.hub import Hub, running_hub
from tunedock_api.manifest import CONFIG_FILE, WEIGHTS_FILE

FIRST, SECOND = "a" * 40, "b" * 40
NAME = "someone/support"


@dataclass
class Fetch:
    """The command, on a home of Hugging Face's of its own."""

    hub: Hub
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, commit: str, target: str = "adapter", name: str = NAME) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("tunedock")), "adapters", "fetch", f"{name}@{commit}"]
        environment = {
            **os.environ,
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.folder / "hf"),
            "HF_TOKEN": "hf_secret",
            "NO_COLOR": "1",
            "COLUMNS": "200",
            **self.environment,
        }
        return subprocess.run(
            [*command, "--to", str(self.folder / target)], env=environment, capture_output=True, text=True, timeout=120
        )

    def files(self, target: str = "adapter") -> dict[str, bytes]:
        """What is there afterwards, with nothing left beside it."""
        beside = {path.name for path in self.folder.iterdir()} - {"hf", "first", "second", "adapter"}
        assert beside == set()
        folder = self.folder / target
        return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


@pytest.fixture
def fetch(tmp_path: Path) -> Iterator[Fetch]:
    with running_hub() as hub:
        for commit, seed in ((FIRST, 1), (SECOND, 2)):
            folder = write_lora(tmp_path / ("first" if seed == 1 else "second"), r=4, lora_alpha=8 * seed)
            files = {path.name: path.read_bytes() + b" " * seed for path in folder.iterdir()}
            hub.commits[NAME, commit] = {**files, "README.md": b"not wanted"}
        yield Fetch(hub, tmp_path)


def _wanted(fetch: Fetch, commit: str) -> dict[str, bytes]:
    return {name: fetch.hub.commits[NAME, commit][name] for name in (CONFIG_FILE, WEIGHTS_FILE)}


def test_the_two_files_of_the_pinned_commit_arrive(fetch: Fetch) -> None:
    done = fetch(FIRST)
    assert (done.returncode, done.stdout.strip()) == (0, str(fetch.folder / "adapter")), done.stderr
    assert fetch.files() == _wanted(fetch, FIRST)
    redirected = f"GET /cdn/{NAME}/{FIRST}/{WEIGHTS_FILE}"
    assert redirected in fetch.hub.requests
    assert not any("README" in request for request in fetch.hub.requests)
    assert not fetch.hub.cdn_saw_a_token, "the token is for the hub alone"


def test_another_commit_into_the_same_folder_replaces_the_files(fetch: Fetch) -> None:
    assert fetch(FIRST).returncode == 0
    assert fetch(SECOND).returncode == 0
    assert fetch.files() == _wanted(fetch, SECOND)


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_the_hub_an_older_commit_is_not_taken_for_the_pinned_one(
    fetch: Fetch, environment: dict[str, str]
) -> None:
    assert fetch(FIRST).returncode == 0
    fetch.environment = environment
    done = fetch(SECOND)
    assert done.returncode == 3
    assert NAME in done.stderr
    assert fetch.files() == _wanted(fetch, FIRST)


def test_a_download_that_is_cut_goes_on_where_it_ended(fetch: Fetch) -> None:
    fetch.hub.cuts = 2
    done = fetch(FIRST)
    assert done.returncode == 0, done.stderr
    assert fetch.files() == _wanted(fetch, FIRST)
    assert fetch.hub.cuts == 0


@pytest.mark.parametrize("damage", ["shorter", "longer", "other bytes"])
def test_what_is_not_what_the_commit_has_is_refused_and_leaves_nothing(fetch: Fetch, damage: str) -> None:
    right = fetch.hub.commits[NAME, FIRST][WEIGHTS_FILE]
    sent = {"shorter": right[:-1], "longer": right + b"x", "other bytes": right[:-2] + b"xx"}
    fetch.hub.sent[WEIGHTS_FILE] = sent[damage]
    done = fetch(FIRST)
    assert done.returncode in (1, 3)
    assert "Traceback" not in done.stderr
    assert NAME in done.stderr
    assert fetch.files() == {}


def test_a_repository_that_is_not_there_says_so(fetch: Fetch) -> None:
    done = fetch(FIRST, name="nobody/nothing")
    assert done.returncode == 3
    assert "There is no model nobody/nothing on Hugging Face" in done.stderr.replace("\n", " ")
    assert fetch.files() == {}


def test_a_repository_without_safetensors_is_no_adapter(fetch: Fetch) -> None:
    fetch.hub.commits[NAME, FIRST] = {CONFIG_FILE: b"{}", "adapter_model.bin": b"pickle"}
    done = fetch(FIRST)
    assert done.returncode == 1
    assert f"holds no {WEIGHTS_FILE}" in done.stderr.replace("\n", " ")
    assert not any("adapter_model.bin" in request for request in fetch.hub.requests)
