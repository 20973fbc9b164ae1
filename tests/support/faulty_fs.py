"""A DurableFS that fails, or stops the world, at its n-th call."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from tunedock_registry.durable import DurableFS


class Crash(BaseException):
    """The process died here. Not an Exception: nothing may catch it and go on."""


class FaultyFS(DurableFS):
    """Counts calls from 1. At call `at`: raises OSError(`error`), or, with `error` None, Crash there and in every later
    call, so that no clean-up can run, as after kill -9. A failing `write` has written half of its data."""

    def __init__(self, at: int = 0, error: int | None = None) -> None:
        self.calls: list[str] = []
        self._at = at
        self._error = error

    def step(self, name: str, half: Callable[[], object] | None = None) -> None:
        """For whatever else counts as a step, too. `half` is what a failing call still does."""
        self.calls.append(name)
        if self._error is None and 0 < self._at < len(self.calls):
            raise Crash(name)
        if len(self.calls) != self._at:
            return
        if half is not None:
            half()
        if self._error is None:
            raise Crash(name)
        raise OSError(self._error, os.strerror(self._error))

    def make_dir(self, path: Path) -> None:
        self.step("make_dir")
        super().make_dir(path)

    def create(self, path: Path) -> BinaryIO:
        self.step("create")
        return super().create(path)

    def write(self, file: BinaryIO, data: bytes) -> None:
        self.step("write", half=lambda: file.write(data[: len(data) // 2]))
        super().write(file, data)

    def sync_file(self, file: BinaryIO) -> None:
        self.step("sync_file")
        super().sync_file(file)

    def sync_dir(self, path: Path) -> None:
        self.step("sync_dir")
        super().sync_dir(path)

    def link(self, source: Path, target: Path) -> None:
        self.step("link")
        super().link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        self.step("rename")
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self.step("unlink")
        super().unlink(path)

    def remove_tree(self, path: Path) -> None:
        self.step("remove_tree")
        super().remove_tree(path)

    def chmod(self, path: Path, mode: int) -> None:
        self.step("chmod")
        super().chmod(path, mode)


def every_step(action: Callable[[FaultyFS], Any]) -> int:
    """How many calls `action` makes when nothing fails: the steps that a test then fails one after the other."""
    fs = FaultyFS()
    action(fs)
    return len(fs.calls)


DISK_FULL, IO_ERROR = errno.ENOSPC, errno.EIO
