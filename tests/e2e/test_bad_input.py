"""Bad input gets one clear answer, and the server goes on."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from support.live_server import BASE, Live, chat_file, upload

GOOD_ROWS = [(f"question {number}", f"answer {number}") for number in range(12)]
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize("model", ["nobody", "nobody@3", f"{BASE}@1", "../../etc/passwd", "text", "x" * 5000])
def test_an_unknown_model_is_404_and_leaves_no_trace(live: Live, model: str) -> None:
    listed = live.openai.models.list().data
    with pytest.raises(openai.NotFoundError) as caught:
        live.openai.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}])
    assert caught.value.code == "model_not_found"
    assert caught.value.type == "invalid_request_error"
    assert live.openai.models.list().data == listed


def test_every_bad_line_of_a_file_is_named_with_its_reason(live: Live, tmp_path: Path) -> None:
    good = json.dumps({"messages": [*MESSAGES, {"role": "assistant", "content": "hi"}]})
    lines = {
        3: '{"messages": [',
        5: json.dumps({"messages": [{"content": "no role"}, {"role": "assistant", "content": "hi"}]}),
        7: json.dumps({"messages": [*MESSAGES, {"role": "assistant", "content": ""}]}),
        9: json.dumps({"messages": MESSAGES}),
    }
    path = tmp_path / "broken.jsonl"
    path.write_text("\n".join(lines.get(number, good) for number in range(1, 13)) + "\n")
    file = live.openai.files.retrieve(upload(live.openai, path))
    assert file.status == "error"
    for number in lines:
        assert f"Example {number}" in (file.status_details or "")


def test_a_job_on_a_file_that_cannot_be_used_is_400_and_names_the_file(live: Live, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text("not json\n" * 12)
    good = chat_file(tmp_path / "good.jsonl", GOOD_ROWS)
    unusable = [upload(live.openai, broken), "file-doesnotexist0000000000", upload(live.openai, good, "user_data")]
    for file_id in unusable:
        with pytest.raises(openai.BadRequestError) as caught:
            live.openai.fine_tuning.jobs.create(model=BASE, training_file=file_id)
        assert file_id in str(caught.value)


def test_a_job_for_an_unknown_model_is_400(live: Live, tmp_path: Path) -> None:
    file_id = upload(live.openai, chat_file(tmp_path / "good.jsonl", GOOD_ROWS))
    with pytest.raises(openai.BadRequestError) as caught:
        live.openai.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=file_id)
    assert caught.value.code == "model_not_available"


def test_a_prompt_over_the_context_is_400_with_both_numbers(live: Live) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        live.openai.chat.completions.create(model=BASE, messages=[{"role": "user", "content": "word " * 3000}])
    assert caught.value.code == "context_length_exceeded"
    assert "1024" in str(caught.value)
    assert any(int(number) > 1024 for number in _numbers(str(caught.value)))


def _numbers(text: str) -> list[str]:
    return "".join(character if character.isdigit() else " " for character in text).split()


def serve(*flags: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("tunedock")
    return subprocess.run([command, "serve", *flags], capture_output=True, text=True, timeout=60, check=False, env=env)


def assert_one_line(ended: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr + ended.stdout
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, ended.stderr
    for part in parts:
        assert part in lines[0]


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert_one_line(serve("--port", port, "--home", str(tmp_path / "home")), port)


def test_a_home_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    home = tmp_path / "file" / "home"
    assert_one_line(serve("--port", "0", "--home", str(home)), str(home))


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    missing = str(tmp_path / "no-such-model")
    ended = serve("--port", "0", "--home", str(tmp_path / "home"), "--model", missing)
    assert_one_line(ended, missing)
