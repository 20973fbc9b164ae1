"""Set before torch is imported: with other work on the machine, spinning OpenMP threads make tests many times slower."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tunedock_trainer.machine import spin_briefly

spin_briefly()


@pytest.fixture
def home_root() -> Iterator[Path]:
    """A folder in memory where there is one: a job commits hundreds of times, and syncing them proves nothing here."""
    memory = Path("/dev/shm")  # noqa: S108
    root = Path(tempfile.mkdtemp(prefix="td-train-", dir=memory if memory.is_dir() else None))
    yield root / "home"
    shutil.rmtree(root)
