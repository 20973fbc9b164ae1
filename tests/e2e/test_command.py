"""The `tunedock` command against the running server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from support.live_server import Live, chat_file

ROWS = [(f"Say word {number}.", "blue") for number in range(16)]


def tunedock(live: Live, *args: str) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("tunedock")
    return subprocess.run([command, *args], capture_output=True, text=True, timeout=240, check=False, env=live.env)


def test_tune_watch_then_chat(live: Live, tmp_path: Path) -> None:
    data = chat_file(tmp_path / "words.jsonl", ROWS)
    tuned = tunedock(live, "tune", str(data), "--adapter", "words", "--watch", "--epochs", "2", "--batch-size", "4")
    assert tuned.returncode == 0, tuned.stderr
    assert tuned.stdout.strip() == "words@1"
    said = tunedock(live, "chat", "--model", "words", "Say word 99.")
    assert said.returncode == 0, said.stderr
    assert "blue" in said.stdout


def test_adapters_list_is_json_for_machines(live: Live, dates_v1: str) -> None:
    listed = tunedock(live, "adapters", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    assert "dates" in {adapter["name"] for adapter in json.loads(listed.stdout)}


def test_an_unknown_model_is_one_line_and_exit_code_3(live: Live) -> None:
    ended = tunedock(live, "chat", "--model", "nobody", "hello")
    assert ended.returncode == 3
    assert len(ended.stderr.strip().splitlines()) == 1
    assert "nobody" in ended.stderr
