"""API keys through the client and the command."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_server import FakeServer, fake_server
from tunedock import BadInput, PermissionDenied, TuneDock, TuneDockError, Unauthenticated
from tunedock.cli.root import run


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    with fake_server(tmp_path_factory.mktemp("keys"), api_key="root") as running:
        yield running


@pytest.fixture(params=["rest", "grpc"])
def admin(locked: FakeServer, request: pytest.FixtureRequest) -> Iterator[TuneDock]:
    with TuneDock(locked.url, "root", grpc=locked.grpc if request.param == "grpc" else None) as made:
        yield made


def test_a_key_opens_what_its_scopes_say_and_nothing_else(locked: FakeServer, admin: TuneDock) -> None:
    made = admin.keys.create("chat only", ["inference", "models"])
    for grpc in (None, locked.grpc):
        with TuneDock(locked.url, made.key, grpc=grpc, max_retries=0) as limited:
            assert limited.chat("hi").text
            with pytest.raises(PermissionDenied):
                limited.adapters.list()


def test_a_revoked_key_is_refused_within_a_second(locked: FakeServer, admin: TuneDock) -> None:
    made = admin.keys.create("short-lived", ["models"])
    with TuneDock(locked.url, made.key, max_retries=0) as client:
        client.models()
        admin.keys.revoke(made.id)
        time.sleep(1.0)
        with pytest.raises(Unauthenticated):
            client.models()
    assert made.id in {key.id for key in admin.keys.list() if key.revoked_at}


def test_the_secret_is_shown_once(admin: TuneDock) -> None:
    made = admin.keys.create("once", ["models"])
    assert made.key
    assert made.key not in repr(made)
    assert all(key.key is None for key in admin.keys.list())


def test_an_unknown_scope_is_refused(admin: TuneDock) -> None:
    with pytest.raises(BadInput, match="Unknown scope"):
        admin.keys.create("x", ["everything"])


def test_without_an_admin_key_nobody_makes_keys(locked: FakeServer, admin: TuneDock) -> None:
    limited = admin.keys.create("limited", ["inference"])
    with TuneDock(locked.url, limited.key, max_retries=0) as client, pytest.raises(TuneDockError) as caught:
        client.keys.create("more", ["admin"])
    assert caught.value.kind.http_status == 403


def test_keys_by_command(
    locked: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TUNEDOCK_API_KEY", "root")
    there = ["--base-url", locked.url, "keys"]
    assert run([*there, "create", "by command", "--scope", "models", "--scope", "inference"]) == 0
    shown = capsys.readouterr()
    secret, key_id = shown.out.strip(), shown.err.split()[0]
    monkeypatch.setenv("TUNEDOCK_API_KEY", secret)
    assert run(["--base-url", locked.url, "models", "list"]) == 0
    assert run([*there, "list"]) == 4
    monkeypatch.setenv("TUNEDOCK_API_KEY", "root")
    assert run([*there, "revoke", key_id]) == 0
    capsys.readouterr()
    assert run([*there, "list"]) == 0
    assert key_id in capsys.readouterr().out
