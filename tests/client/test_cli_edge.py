"""The command at its edge: help, usage errors, exit codes, missing extras. No server runs here."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import tunedock_api.errors as errors
from tunedock.cli.plugins import KNOWN, MissingExtra, run_entry_point
from tunedock.cli.root import exit_code, run
from tunedock.wire_errors import from_code
from tunedock_api.errors import CODES

NOWHERE = "http://127.0.0.1:9/v1"  # the discard port: refused at once


def command(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the installed command in a process of its own."""
    binary = Path(sys.executable).with_name("tunedock")
    return subprocess.run(
        [binary, *args], capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin", **env}, check=False
    )


def test_cold_help_takes_less_than_twice_what_its_libraries_take() -> None:
    """In CPU seconds, as a busy machine must not look like a heavy command. Wall time is 0.2 s on one that is not slow."""
    libraries = [sys.executable, "-c", "import rich.console, typer"]

    def cost_s(run: Callable[[], subprocess.CompletedProcess[Any]]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run().returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    pairs = [
        (cost_s(lambda: command("--help")), cost_s(lambda: subprocess.run(libraries, check=False))) for _ in range(3)
    ]
    helps, imports = zip(*pairs, strict=True)
    assert min(helps) < 2 * min(imports)


@pytest.mark.parametrize("group", [(), ("jobs",), ("adapters",), ("models",), ("data",)])
def test_every_group_explains_itself(group: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*group, "--help"]) == 0
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["job", "list"], "Did you mean 'jobs'?"),
        (["jobs", "lst"], "Did you mean 'list'?"),
        (["jobs", "list", "--jsn"], "--json"),
        (["tune"], "'data'"),
        (["tune", "x.jsonl", "--adapter", "a", "--method", "magic"], "supervised or dpo"),
        (["tune", "x.jsonl", "--adapter", "a", "--set", "novalue"], "KEY=VALUE"),
        (["jobs", "list", "--limit", "0"], "--limit"),
    ],
)
def test_wrong_usage_is_one_line_with_a_hint_and_exit_code_2(
    args: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(args) == 2
    shown = capsys.readouterr()
    assert hint in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_an_unreachable_service_is_one_line_and_exit_code_6(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--base-url", NOWHERE, "jobs", "list"]) == 6
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "tunedock serve" in shown
    assert "Traceback" not in shown


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--debug", "--base-url", "nonsense", "jobs", "list"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_missing_data_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--base-url", NOWHERE, "tune", "/no/such.jsonl", "--adapter", "a"]) == 1
    assert "/no/such.jsonl" in capsys.readouterr().err


def test_a_command_of_an_extra_that_is_not_installed_prints_the_pip_line() -> None:
    absent = EntryPoint("serve", "package_that_is_not_there.cli:serve", "tunedock.commands")
    with pytest.raises(MissingExtra, match=r"pip install 'tunedock\[server,trainer,(cpu|gpu)\]'"):
        run_entry_point(absent, "serve", [])


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_command_without_its_package_names_an_extra_of_this_distribution(name: str) -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'tunedock\[[a-z,]+\]'"):
        run_entry_point(None, name, [])


@pytest.mark.parametrize("code", CODES)
def test_every_error_of_the_table_has_a_documented_exit_code(code: str) -> None:
    assert exit_code(from_code(code, "x")) in {1, 3, 4, 5, 6}


def test_the_documented_exit_codes() -> None:
    assert exit_code(errors.NotFound("x")) == 3
    assert exit_code(errors.Unauthenticated("x")) == exit_code(errors.PermissionDenied("x")) == 4
    assert exit_code(errors.Conflict("x")) == 5
    assert exit_code(errors.Unavailable("x")) == exit_code(errors.DeadlineExceeded("x")) == 6
    assert exit_code(errors.BadInput("x")) == 1


@pytest.mark.parametrize(
    ("typed", "word", "offered"),
    [("tunedock adap", 1, {"adapters"}), ("tunedock adapters d", 2, {"diff", "download", "delete"})],
)
def test_the_shell_completes_commands(typed: str, word: int, offered: set[str]) -> None:
    done = command(_TUNEDOCK_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=str(word))
    assert set(done.stdout.split()) <= offered
    assert len(done.stdout.split()) >= min(2, len(offered))


def test_no_color_leaves_no_escape_codes() -> None:
    assert "\x1b[" not in command("jobs", "--help", NO_COLOR="1").stdout


def test_the_version_is_printed() -> None:
    assert command("--version").stdout.strip().count(".") == 2
