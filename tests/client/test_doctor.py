"""`tunedock doctor`: real checks on this machine and on a real server."""

from __future__ import annotations

import json
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_server import FakeServer, fake_server
from tunedock.cli import checks
from tunedock.cli.checks import Finding
from tunedock.cli.root import run


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    with fake_server(tmp_path_factory.mktemp("doctor"), api_key="right") as running:
        yield running


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEDOCK_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def by_subject(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


def test_every_bad_finding_says_what_to_do(live: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["--base-url", live.url, "doctor", "--json"])
    findings = [Finding(**shown) for shown in json.loads(capsys.readouterr().out)]
    assert {"python", "tunedock", "gpu", "home", "sqlite", "registry", "service", "clock"} <= {
        f.subject for f in findings
    }
    assert all(finding.advice for finding in findings if finding.level != "ok")
    assert code == int(any(finding.level == "fail" for finding in findings))


def test_a_ready_service_with_the_right_key_shows_its_engine(live: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEDOCK_API_KEY", "right")
    found = by_subject(checks.service(live.url))
    assert (found["service"].level, found["clock"].level) == ("ok", "ok")
    assert "0 of 2 slots" in found["engine"].detail


def test_a_wrong_key_is_told(live: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEDOCK_API_KEY", "wrong")
    assert by_subject(checks.service(live.url))["key"].level == "fail"


def test_a_degraded_engine_is_a_warning(live: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEDOCK_API_KEY", "right")
    live.pool.degrade("the CPU LoRA self-check failed")
    assert by_subject(checks.service(live.url))["engine"].level == "warn"


def test_nobody_at_home_is_a_warning_with_the_command() -> None:
    assert "tunedock serve" in by_subject(checks.service("http://127.0.0.1:9/v1"))["service"].advice


def test_a_home_that_cannot_be_written_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEDOCK_HOME", "/proc/nowhere")
    assert by_subject(checks.home())["home"].level == "fail"


def test_a_sound_registry_shows_its_schema_and_a_torn_one_fails(live: FakeServer, home: Path) -> None:
    home.mkdir()
    with sqlite3.connect(live.registry.home.db_path) as source, sqlite3.connect(home / "tunedock.db") as target:
        source.backup(target)
    assert by_subject(checks.registry())["registry"].level == "ok"
    (home / "tunedock.db").write_bytes(b"not a database" * 100)
    assert by_subject(checks.registry())["registry"].level == "fail"


def test_a_port_in_somebody_elses_hands_is_a_warning(monkeypatch: pytest.MonkeyPatch, live: FakeServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("TUNEDOCK_PORT", str(taken.getsockname()[1]))
        assert by_subject(checks.ports())["REST port"].level == "warn"
    monkeypatch.setenv("TUNEDOCK_PORT", live.url.split(":")[2].removesuffix("/v1"))
    assert "TuneDock" in by_subject(checks.ports())["REST port"].detail
