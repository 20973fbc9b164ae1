from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_RAM = Path("/dev/shm")  # noqa: S108  a file system in memory, where there is one


@pytest.fixture
def fast_folder() -> Iterator[Path]:
    """An empty folder where a sync costs nothing: for thousands of short transactions."""
    folder = Path(tempfile.mkdtemp(prefix="tunedock-", dir=_RAM if _RAM.is_dir() else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
