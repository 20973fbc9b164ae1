"""What the trainer's own process sets up before it imports anything heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = """
import sys
from tunedock_registry.imports import leave_out_unused
leave_out_unused(cuda=False)
from support.training import config, items, step, trainee
step(trainee(config(), items(8)))
print(*sorted(name for name in ("accelerate", "pandas", "pyarrow", "scipy", "sklearn", "triton") if sys.modules.get(name)))
"""


@pytest.mark.parametrize("call", ["leave_out_unused(cuda=False)", "pass"])
def test_training_needs_none_of_what_transformers_imports_for_other_ends(call: str) -> None:
    script = TRAIN.replace("leave_out_unused(cuda=False)", call)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    loaded = done.stdout.split()
    # Without the call they are there, wherever they are installed: else the call would have become useless.
    assert loaded == [] if call != "pass" else "scipy" in loaded
