"""Every snippet of the documentation runs, in order, page by page; the generated pages are current."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.bases import tiny_base
from support.fake_server import BASE, FakeServer, fake_server
from support.fake_trainer import FakeTrainer
from tunedock.cli.root import run
from tunedock_api.errors import Conflict

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS) for path in (DOCS / "tutorial.md", *(DOCS / "how-to").glob("*.md")))
FENCE = re.compile(r"^```(\w+)( skip)?\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\((?!http)([^)#]+)\)")


class Snippet(NamedTuple):
    language: str
    text: str


def snippets(path: Path) -> Iterator[Snippet]:
    for language, skipped, text in FENCE.findall(path.read_text()):
        if not skipped and language in ("python", "bash"):
            yield Snippet(language, text)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[FakeServer]:
    """A server with `support` in two versions, and a trainer that takes every job."""
    with fake_server(tmp_path / "server") as running:
        running.ready("support", seed=71)
        running.ready("support", seed=72, production=False)
        done = threading.Event()
        trainer = FakeTrainer(running.registry, tiny_base(BASE), running.folder / "trained")

        def work() -> None:
            while not done.wait(0.05):
                if running.registry.jobs.with_status("queued"):
                    with contextlib.suppress(AssertionError, Conflict):  # the page cancelled the job meanwhile
                        trainer.run()

        worker = threading.Thread(target=work)
        worker.start()
        yield running
        done.set()
        worker.join()


@pytest.fixture
def folder(tmp_path: Path, live: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader of the page would stand."""
    place = tmp_path / "reader"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("TUNEDOCK_BASE_URL", live.url)
    monkeypatch.setenv("TUNEDOCK_HOME", str(tmp_path / "home"))
    return place


def execute(snippet: Snippet, names: dict[str, Any], live: FakeServer) -> None:
    if snippet.language == "python":
        # The page about gRPC reads its target from the environment; every other page goes over REST.
        if "grpc" in snippet.text:
            os.environ["TUNEDOCK_GRPC"] = live.grpc
        try:
            exec(compile(snippet.text, "<snippet>", "exec"), names)  # noqa: S102
        finally:
            os.environ.pop("TUNEDOCK_GRPC", None)
        return
    for line in snippet.text.splitlines():
        shell(line.partition(" #")[0].strip(), live)


def shell(line: str, live: FakeServer) -> None:
    """`tunedock …` runs in this process, anything else as it stands, on the test's server."""
    if not line:
        return
    program, *args = shlex.split(line.replace("http://127.0.0.1:8000/v1", live.url))
    if program == "tunedock":
        assert run(args) == 0, line
        return
    subprocess.run([program, *args], check=True, timeout=60, capture_output=True)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_snippet_of_a_page_runs(page: Path, live: FakeServer, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    found = list(snippets(DOCS / page))
    assert found, "a page without a snippet"
    for snippet in found:
        execute(snippet, names, live)
    if "client" in names:
        names["client"].close()


def test_the_readmes_python_runs(live: FakeServer, folder: Path) -> None:
    pair = '{"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]}\n'
    (folder / "dates.jsonl").write_text(pair * 12)
    ours = [s.text for s in snippets(ROOT / "README.md") if s.language == "python" and "from tunedock" in s.text]
    assert ours
    for text in ours:
        names: dict[str, Any] = {}
        execute(Snippet("python", text), names, live)
        names["client"].close()


def test_links_between_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in LINK.findall(page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_the_reference_is_what_the_code_says() -> None:
    checked = subprocess.run(
        [sys.executable, DOCS / "generate.py", "--check"], capture_output=True, text=True, timeout=120, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_the_readme_gets_to_an_answer_within_forty_lines() -> None:
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    assert all(step in first for step in ("make setup", "tunedock serve", "tunedock tune", "tunedock chat"))
