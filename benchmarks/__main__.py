"""`make bench`: every benchmark in turn, each in a process of its own. Arguments are handed on (`--quick`, `--json FOLDER`)."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

BENCHMARKS = ("lora_kernel", "serve_lora", "swap", "gateway", "train", "cotrain")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="minutes instead of an hour, with wide intervals")
    parser.add_argument("--only", choices=BENCHMARKS, action="append", help="may repeat; default: all")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="write NAME.json files there")
    options = parser.parse_args()
    missed = []
    for name in options.only or BENCHMARKS:
        print(f"== {name}", flush=True)
        began = time.monotonic()
        if run(name, options.quick, options.json) != 0:
            missed.append(name)
        print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
    print(f"goals missed in: {', '.join(missed)}" if missed else "every goal is met")
    return 1 if missed else 0


def run(name: str, quick: bool, folder: Path | None) -> int:
    """The exit status: 0 when every goal is met."""
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    if quick:
        command.append("--quick")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        command += ["--json", str(folder / f"{name}.json")]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
