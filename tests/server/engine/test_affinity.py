"""Where compute threads run. In a process of its own: binding lasts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

CODE = """
import json, os, threading, torch
from tunedock_server.engine import affinity
torch.ones(1 << 20).add_(1)
bound = affinity.bind_compute_threads()
threads = [sorted(os.sched_getaffinity(int(name))) for name in os.listdir("/proc/self/task")]
found = []
def late():
    found.append(sorted(os.sched_getaffinity(0)))
    affinity.run_anywhere()
    found.append(sorted(os.sched_getaffinity(0)))
thread = threading.Thread(target=late)
thread.start()
thread.join()
print(json.dumps({"bound": bound, "threads": threads, "late": found}))
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="binding is for Linux")


def _found(threads: int, cpus: set[int]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_each_compute_thread_has_a_processor_of_its_own() -> None:
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("needs two processors")
    found = _found(2, set(cpus))
    assert found["bound"]
    assert [cpus[0]] in found["threads"]
    assert [cpus[1]] in found["threads"]
    assert found["late"] == [[cpus[0]], cpus], "threads started later inherit one processor and can get all back"


def test_fewer_compute_threads_than_processors_stay_free() -> None:
    cpus = os.sched_getaffinity(0)
    found = _found(1, cpus)
    assert not found["bound"]
    assert all(thread == sorted(cpus) for thread in found["threads"])
