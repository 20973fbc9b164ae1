"""The files in `deploy/` fit the code: stages, paths, flags, the unit. No image is built here."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
STAGE = re.compile(r"^FROM (\S+) AS (\S+)$", re.M)


@pytest.fixture(scope="module")
def stages() -> dict[str, str]:
    """Stage name -> its instructions."""
    text = (DEPLOY / "Dockerfile").read_text()
    found = list(STAGE.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    return {match[2]: text[match.end() : end] for match, end in zip(found, ends, strict=True)}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services: dict[str, Any] = loaded["services"]
    return services


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_both_images_run_as_nobody_special_and_are_checked(stages: dict[str, str], name: str) -> None:
    assert "USER tunedock" in stages[name]
    assert "/readyz" in stages[name]
    assert stages[name].index("USER tunedock") < stages[name].index("ENTRYPOINT")


def test_what_the_image_copies_exists(stages: dict[str, str]) -> None:
    copied = [
        word
        for text in stages.values()
        for line in re.findall(r"^COPY (.+)$", text, re.M)
        for word in line.split()[:-1]
    ]
    assert copied
    assert [path for path in copied if not (ROOT / path).exists()] == []


def test_the_build_context_leaves_out_what_is_not_copied(stages: dict[str, str]) -> None:
    kept = {
        line[1:].strip("/") for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"
    }
    copied = {
        word.strip("/")
        for text in stages.values()
        for line in re.findall(r"^COPY (.+)$", text, re.M)
        for word in line.split()[:-1]
    }
    assert copied == kept


def test_compose_builds_stages_that_exist_and_starts_them_with_a_key(
    stages: dict[str, str], services: dict[str, Any]
) -> None:
    for service in services.values():
        assert service["build"]["target"] in stages
        assert service["read_only"] is True
        assert "set a key" in service["environment"]["TUNEDOCK_API_KEY"]


def test_the_flags_in_compose_and_the_unit_are_flags_of_serve(services: dict[str, Any]) -> None:
    from tunedock_server.cli import serve

    known = {f"--{name.replace('_', '-')}" for name in serve.__annotations__}
    unit = re.search(r"^ExecStart=(.+)$", (DEPLOY / "tunedock.service").read_text(), re.M)
    assert unit is not None
    lines = [shlex.split(unit[1]), *(service["command"] for service in services.values())]
    used = {word for line in lines for word in line if word.startswith("--")}
    assert used <= known


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "tunedock.service").read_text().replace("/opt/tunedock/.venv/bin/tunedock", "/bin/true")
    (tmp_path / "tunedock.service").write_text(unit)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "tunedock.service")]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "tunedock.service" not in checked.stderr, checked.stderr
