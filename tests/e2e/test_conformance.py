"""The conformance suite against the real engine and the real trainer; on its own it runs with stand-ins for both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.live_server import Live

ROOT = Path(__file__).parents[2]


def test_the_unmodified_openai_client_is_content_with_the_real_server(live: Live) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/conformance"],
        cwd=ROOT,
        env={**os.environ, "TUNEDOCK_CONFORMANCE_URL": live.server.base_url},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
