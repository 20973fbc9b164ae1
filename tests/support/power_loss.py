"""A world that stops at any step, and loses what was not synced.

`World` is a DurableFS that counts its calls together with the statements and commits of a database. At step `at` it
raises Crash, there and in every later call, as after kill -9. `lose` then does to the disk what a power cut may do, by the
rules that LazyFS uses: a file keeps its synced content and any part of what was written since; a folder keeps the names
that were synced, and any part of the changes since then.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from sqlalchemy import event
from sqlalchemy.orm import Session
from tunedock_registry.db import Database

from .faulty_fs import FaultyFS


@dataclass
class _Change:
    """One change of names that no `sync_dir` has made durable yet. `origin` is where the thing came from, or lies now."""

    kind: Literal["create", "rename", "remove"]
    path: Path
    origin: Path | None = None

    def undo(self) -> None:
        if self.kind == "create":
            _delete(self.path)
        elif self.kind == "rename" and self.origin is not None:
            _move(self.path, self.origin)
        elif self.origin is not None:
            _move(self.origin, self.path)


@dataclass
class _File:
    """`synced` bytes at the front are durable."""

    path: Path
    synced: int = 0


class World(FaultyFS):
    """`graveyard` lies on the same file system: removed files wait there in case their removal was not durable.
    `on_commit` is called after every commit that is a step."""

    def __init__(self, graveyard: Path, at: int = 0, on_commit: Callable[[], object] | None = None) -> None:
        super().__init__(at)
        graveyard.mkdir(exist_ok=True)
        self._graveyard = graveyard
        self._on_commit = on_commit
        self._db: Database | None = None
        self._changes: list[_Change] = []
        self._files: dict[int, _File] = {}

    # Steps of the database.

    def attach(self, db: Database) -> None:
        """Counts the writer's statements and both sides of every commit as steps, too."""
        self._db = db
        event.listen(db.engines.writer, "before_cursor_execute", self._before_statement)
        event.listen(db.engines.writer, "commit", self._before_commit)
        event.listen(Session, "after_commit", self._after_commit)

    def detach(self) -> None:
        event.remove(Session, "after_commit", self._after_commit)

    def _before_statement(self, _connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        self.step(statement.split(maxsplit=1)[0])

    def _before_commit(self, _connection: Any) -> None:
        self.step("commit")

    def _after_commit(self, session: Session) -> None:
        """For this database's writer alone: the listener hears every session there is."""
        if self._db is None or session.get_bind() is not self._db.engines.writer:
            return
        self.step("committed")
        if self._on_commit is not None:
            self._on_commit()

    # Steps of the file system.

    def make_dir(self, path: Path) -> None:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        super().make_dir(path)
        self._changes += [_Change("create", folder) for folder in reversed(missing)]

    def create(self, path: Path) -> BinaryIO:
        file = super().create(path)
        self._files[os.fstat(file.fileno()).st_ino] = _File(path)
        self._changes.append(_Change("create", path))
        return file

    def sync_file(self, file: BinaryIO) -> None:
        super().sync_file(file)
        status = os.fstat(file.fileno())
        self._files[status.st_ino].synced = status.st_size

    def sync_dir(self, path: Path) -> None:
        super().sync_dir(path)
        self._changes = [change for change in self._changes if change.path.parent != path]

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        if file := self._files.get(target.stat().st_ino):
            file.path = target  # The name that stays.
        self._changes.append(_Change("create", target))

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        moved: list[_Change | _File] = [*self._changes, *self._files.values()]
        for item in moved:
            if item.path.is_relative_to(source):
                item.path = target / item.path.relative_to(source)
        self._changes.append(_Change("rename", target, source))

    def unlink(self, path: Path) -> None:
        self._remove(path)

    def remove_tree(self, path: Path) -> None:
        self._remove(path)

    def _remove(self, path: Path) -> None:
        self.step("remove")
        if path.exists():
            grave = self._graveyard / f"{len(self.calls)}-{path.name}"
            path.rename(grave)
            self._changes.append(_Change("remove", path, grave))

    # What a power cut does.

    def lose(self, rng: random.Random) -> None:
        """Call it after the crash, before anybody opens the files again."""
        kept = rng.randint(0, len(self._changes))
        for number, change in reversed(list(enumerate(self._changes))):
            # Half of the time in order, as a journal would; otherwise each change has its own luck.
            if number >= kept if rng.random() < 0.5 else rng.random() < 0.5:
                change.undo()
        for file in self._files.values():
            if file.path.is_file() and file.path.stat().st_size > file.synced:
                file.path.chmod(0o600)
                os.truncate(file.path, rng.randint(file.synced, file.path.stat().st_size))


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _move(source: Path, target: Path) -> None:
    if source.exists() and not target.exists() and target.parent.is_dir():
        source.rename(target)
