"""The TypeScript example: built once, run as a person would."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "node"


@cache
def build() -> str | None:
    """Installs from the lock file and compiles. Why that is not possible here, or None."""
    if not (shutil.which("node") and shutil.which("npm")):
        return "node is not installed"
    if not (EXAMPLE / "node_modules").is_dir():
        installed = _npm("ci", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-timeout=20000")
        if installed.returncode:
            return f"npm ci failed: {installed.stderr.strip().splitlines()[-1:]}"
    compiled = _npm("run", "build")
    assert compiled.returncode == 0, compiled.stdout
    return None


def built_or_skipped() -> None:
    """Skips the test where there is no node, or no way to the npm registry."""
    if why := build():
        pytest.skip(why)


def run_example(*args: str) -> subprocess.CompletedProcess[str]:
    command = ["node", str(EXAMPLE / "dist" / "main.js"), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def _npm(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["npm", *args], cwd=EXAMPLE, capture_output=True, text=True, timeout=120, check=False)
