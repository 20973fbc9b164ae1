"""`tunedock data check` and `tunedock models pull`, through the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.models import default_model_path
from tunedock.cli.root import run

GOOD = '{"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]}\n'


def test_a_good_file_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "good.jsonl"
    data.write_text(GOOD * 12)
    assert run(["data", "check", str(data)]) == 0
    assert "ok, 12 chat examples" in capsys.readouterr().err


def test_every_bad_line_is_printed_with_its_number_and_the_exit_code_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text(GOOD + "nope\n" + GOOD + '{"messages": []}\n')
    assert run(["data", "check", str(data)]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in shown] == [f"{data}:2", f"{data}:4"]


def test_json_holds_the_whole_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text("nope\n")
    assert run(["data", "check", str(data), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["num_errors"], report["errors"][0]["line"]) == (False, 1, 1)


def test_with_a_model_the_tokens_are_counted_and_the_mask_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "good.jsonl"
    data.write_text(GOOD * 12)
    model = ["--model", str(default_model_path()), "--validation", str(data), "--masks", "1"]
    assert run(["data", "check", str(data), *model]) == 0
    shown = capsys.readouterr().err
    assert "repeated: 11 exactly" in shown
    assert "also in the validation file: 12 exactly" in shown
    assert "longer than 8192 tokens: 0" in shown
    assert "<|im_start|>assistant\n«2<|im_end|>»" in shown


def test_a_missing_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", "/no/such.jsonl"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_home_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "pull", "--home", "/proc/home"]) == 1
    shown = capsys.readouterr().err
    assert "/proc/home" in shown
    assert shown.count("\n") == 1


def test_a_model_that_does_not_exist_is_not_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "pull", str(tmp_path / "none"), "--home", str(tmp_path)]) == 3
    assert "does not exist" in capsys.readouterr().err
