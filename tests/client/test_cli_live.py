"""The command against the real server with a fake engine: what goes to stdout, what to stderr, how it exits."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.bases import tiny_base
from support.fake_server import BASE, FakeServer, fake_server
from support.fake_trainer import FakeTrainer
from tunedock.cli.root import run
from tunedock.cli.tune import knobs_of

LINE = '{"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]}\n'


class Done(NamedTuple):
    """How one command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Done]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    with fake_server(tmp_path_factory.mktemp("cli")) as running:
        yield running


@pytest.fixture
def command(live: FakeServer, capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*args: str) -> Done:
        code = run(["--base-url", live.url, *args])
        return Done(code, *capsys.readouterr())

    return call


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text(LINE * 12)
    return path


def test_tune_and_watch_prints_the_reference_alone_on_stdout(live: FakeServer, command: Command, data: Path) -> None:
    trainer = FakeTrainer(live.registry, tiny_base(BASE), live.folder / "trained")
    worker = threading.Thread(target=trainer.run_when_asked)
    worker.start()
    done = command("tune", str(data), "--adapter", "dates", "--watch", "--epochs", "3", "--set", "promote=first")
    worker.join()
    assert (done.code, done.out) == (0, "dates@1\n")
    assert "Step 3/3: training loss" in done.err
    assert command("chat", "--model", "dates", "hi").code == 0


def test_tune_without_watching_prints_the_job(command: Command, data: Path) -> None:
    done = command("tune", str(data), "--adapter", "later")
    job = done.out.strip()
    assert job.startswith("ftjob-")
    assert f"tunedock jobs watch {job}" in done.err
    assert job in command("jobs", "list").out
    assert command("jobs", "get", job, "--json").json["status"] == "queued"
    assert "Created fine-tuning job" in command("jobs", "events", job).out
    assert command("jobs", "cancel", job, "--json").json["status"] == "cancelled"
    assert command("jobs", "watch", job).code == 5


def test_bad_data_prints_the_lines_and_exits_1(command: Command, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(LINE + "nope\n")
    done = command("tune", str(bad), "--adapter", "x")
    assert done.code == 1
    assert "Example 2" in done.err
    assert done.out == ""


def test_chat_streams_the_answer_to_stdout(command: Command) -> None:
    done = command("chat", "hello")
    assert done.code == 0
    assert "base" in done.out


def test_chat_as_json_names_the_version(live: FakeServer, command: Command) -> None:
    live.ready("said", seed=41)
    answer = command("chat", "--model", "said", "--json", "hello").json
    assert answer["model"] == "said@1"
    assert answer["usage"]["completion_tokens"] == 5


def test_compare_asks_both_models(live: FakeServer, command: Command) -> None:
    live.ready("compared", seed=42)
    done = command("chat", "--model", "compared", "--compare", "base", "--json", "hello")
    assert [answer["model"] for answer in done.json] == ["compared@1", BASE]
    shown = command("chat", "--model", "compared", "--compare", "base", "hello").out
    assert "compared@1" in shown
    assert BASE in shown


def test_adapters_move_by_command(live: FakeServer, command: Command) -> None:
    live.ready("moved", seed=43)
    live.ready("moved", seed=44, production=False)
    assert "moved@production is now version 2" in command("adapters", "promote", "moved@2", "--reason", "why").err
    assert command("adapters", "rollback", "moved", "--json").json["targets"][0]["version"] == 1
    assert "why" in command("adapters", "history", "moved").out
    assert [a["name"] for a in command("adapters", "list", "--json").json].count("moved") == 1
    assert "moved@2" in command("adapters", "get", "moved").out
    assert command("adapters", "load", "moved@1", "--json").json["residency"] == "slot"
    assert command("adapters", "pin", "moved@1", "--json").json["pinned"] is True
    assert command("adapters", "unpin", "moved@1").code == 0


def test_adapters_are_downloaded_and_published(live: FakeServer, command: Command, tmp_path: Path) -> None:
    live.ready("source", seed=45)
    folder = tmp_path / "folder"
    assert command("adapters", "download", "source@1", str(folder)).out.strip() == str(folder)
    assert command("adapters", "publish", "copy", str(folder), "--json").json["name"] == "copy"
    assert command("adapters", "publish", "copy", str(folder), "--wait", "--json").json["state"] == "ready"


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["adapters", "get", "nobody"], 3),
        (["chat", "--model", "nobody@3", "hi"], 3),
        (["jobs", "get", "ftjob-none"], 3),
        (["adapters", "promote", "not a ref"], 1),
        (["adapters", "publish", "x", "/no/such/folder"], 3),
    ],
)
def test_failures_are_one_line_with_their_exit_code(command: Command, args: list[str], code: int) -> None:
    done = command(*args)
    assert done.code == code
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_a_name_that_is_nearly_right_gets_a_hint(live: FakeServer, command: Command) -> None:
    live.ready("invoices", seed=47)
    assert "Did you mean 'invoices'?" in command("chat", "--model", "invoces", "hi").err
    assert "Did you mean 'invoices'?" in command("adapters", "get", "invoicse").err
    assert "Did you mean" not in command("chat", "--model", "zzzz", "hi").err


def test_a_conflict_exits_5(live: FakeServer, command: Command) -> None:
    live.ready("raced", seed=46)
    assert command("adapters", "promote", "raced@1", "--expected-revision", "99").code == 5


def test_a_wrong_key_exits_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server(tmp_path, api_key="right") as locked:
        assert run(["--base-url", locked.url, "jobs", "list"]) == 4
    assert "Incorrect API key" in capsys.readouterr().err


def test_models_list_shows_the_base(command: Command) -> None:
    assert BASE in command("models", "list").out


def test_dotted_settings_become_nested_knobs() -> None:
    given = ["lora.rank=8", "lora.alpha=16.5", "promote=never", 'mixing={"file-1": 0.5}']
    assert knobs_of(given) == {"lora": {"rank": 8, "alpha": 16.5}, "promote": "never", "mixing": {"file-1": 0.5}}
