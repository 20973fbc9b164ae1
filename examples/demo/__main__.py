"""`make demo`. Exit status 0 when every claim holds, 1 when one does not or something breaks."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI
from rich.console import Console
from rich.markup import escape
from tunedock import TuneDock
from tunedock_registry.layout import Home
from tunedock_registry.models import DEFAULT_MODEL

from examples.serving import DidNotStart, ServerProcess, port_is_free

from .domain import Domain
from .measure import exact_match
from .report import Result, claims, show
from .rollout import mismatches, misrouted, roll_out
from .tuning import JobFailed, start_job, tune

# (domain, passes over its data)
DOMAINS = ((Domain("dates"), 1), (Domain("airports"), 1))
NEXT_DATES = Domain("dates", "-v2")
# What only the answers of that version of `dates` hold.
MARKS = ('{"date":', '{"day":')
PORTS = (8000, 8001)
MESSAGES = (
    '[{"role": "system", "content": "Find the date."}, '
    '{"role": "user", "content": "Tickets for 26-Sep-1996 are sold out."}]'
)
CURL = f'curl -s URL/chat/completions -H "content-type: application/json" -d \'{{"model": "dates", "messages": {MESSAGES}}}\''
PYTHON = (
    'python -c \'from openai import OpenAI; print(OpenAI(base_url="URL", api_key="any").chat.completions.create('
    f'model="dates", messages={MESSAGES}).choices[0].message.content)\''
)


def main() -> int:
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that the server is stopped
    console = Console(highlight=False)
    say = progress(console)
    try:
        with server(say) as running:
            ok = run(running, console, say)
            farewell(console, running, ok)
            if options.keep:
                wait_for_interrupt(console)
        return 0 if ok else 1
    except (DidNotStart, JobFailed, RuntimeError) as error:
        console.print(f"[red]The demo failed:[/red] {escape(str(error))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    on_screen = sys.stdin.isatty() and sys.stdout.isatty()
    keep = parser.add_mutually_exclusive_group()
    keep.add_argument("--keep", action="store_true", default=on_screen, help="serve on until Ctrl-C (on a terminal)")
    keep.add_argument("--stop", dest="keep", action="store_false", help="end the server after the figures")
    return parser.parse_args(arguments)


def progress(console: Console) -> Callable[[str], None]:
    """Lines that begin with the seconds since the start."""
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:4.0f} s[/dim]  {escape(text)}", soft_wrap=True)

    return say


@contextmanager
def server(say: Callable[[str], None]) -> Iterator[ServerProcess]:
    """A server on a home folder that ends with it; base models are shared with the usual home."""
    models = Home.resolve().create().models
    with tempfile.TemporaryDirectory(prefix="tunedock-demo-", ignore_cleanup_errors=True) as folder:
        home = Path(folder) / "home"
        home.mkdir()
        (home / "models").symlink_to(models)
        ports = PORTS if all(map(port_is_free, PORTS)) else (0, 0)
        running = ServerProcess(home, port=ports[0], grpc_port=ports[1], environment=clean_environment(), ready_s=600)
        say(f"starting tunedock serve (log: {running.log_path}); the first start fetches a 98 MB model")
        with running:
            say(f"ready at {running.base_url}")
            yield running


def clean_environment() -> dict[str, str]:
    """No key and no foreign registry: the demo runs on its own home, whatever the shell has set."""
    os.environ.pop("TUNEDOCK_API_KEY", None)
    os.environ.pop("TUNEDOCK_DATABASE_URL", None)
    os.environ.pop("TUNEDOCK_STORE_URL", None)
    # Eight streams run without a pause while a version is trained: a trainer that gives way to them would hardly move.
    return {"OPENAI_API_KEY": "demo", "TUNEDOCK_TRAINER_NICE": "0"}


def run(running: ServerProcess, console: Console, say: Callable[[str], None]) -> bool:
    """The life of two adapters. True when every claim holds."""
    with OpenAI(base_url=running.base_url, api_key="demo") as client, TuneDock(running.base_url, "demo") as dock:
        # 1. Two domains, tuned and measured.
        results = [tune_and_measure(client, domain, epochs, say) for domain, epochs in DOMAINS]
        # 2. Version 2 of the first one, published, promoted and rolled back under streams.
        old = results[0].tuned.model
        say(f"training the next version of {old}; eight streams run while it is published, promoted and rolled back")
        job = start_job(client, DEFAULT_MODEL, NEXT_DATES.train_path, DOMAINS[0][0].name, 1, say)
        rollout = roll_out(client, dock, old, job, NEXT_DATES.held_out())
    # 3. What came of it.
    wrong = mismatches(rollout, dict(zip((rollout.old, rollout.new), MARKS, strict=True)))
    show(console, results, rollout, wrong)
    checked = claims(results, rollout, wrong, misrouted(rollout))
    for claim in checked:
        mark = "[green]ok    [/green]" if claim.holds else "[red]FAILED[/red]"
        console.print(f"{mark}  {escape(claim.text)}", soft_wrap=True)
    return all(claim.holds for claim in checked)


def tune_and_measure(client: OpenAI, domain: Domain, n_epochs: int, say: Callable[[str], None]) -> Result:
    questions = domain.held_out()
    say(f"{domain.name}: asking the base model {len(questions)} held-out questions")
    base = exact_match(client, DEFAULT_MODEL, questions)
    say(f"{domain.name}: training on {domain.train_path.name}")
    tuned = tune(client, DEFAULT_MODEL, domain.train_path, domain.name, n_epochs, say)
    score = exact_match(client, tuned.model, questions)
    say(f"{tuned.model}: exact match {base.exact_match:.2f} -> {score.exact_match:.2f} in {tuned.seconds:.0f} s")
    return Result(tuned, base, score)


def farewell(console: Console, running: ServerProcess, ok: bool) -> None:
    console.print(f"\n{'Every claim holds.' if ok else 'Not every claim holds.'} The server: {running.base_url}")
    for line in (CURL, PYTHON):
        console.print("  " + line.replace("URL", running.base_url), soft_wrap=True, markup=False)


def wait_for_interrupt(console: Console) -> None:
    console.print("It runs until Ctrl-C.")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())
