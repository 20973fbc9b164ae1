"""The front door of the registry: one object that holds its parts. Everything here is synchronous."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from .adapters.remote_folders import open_folders
from .adapters.store import Adapters
from .blobs import Blobs, open_blobs
from .clock import Clock
from .collector import Collector
from .db import Database, open_database
from .durable import DurableFS
from .files import Files
from .jobs import Jobs
from .keys import Keys
from .known import Known
from .layout import Home
from .migrate import migrate
from .object_store import ObjectStore, open_store
from .permissions import Permissions
from .staging import Staging
from .tables.base import change_counter
from .uploads import Uploads
from .webhooks import Webhooks


@dataclass(frozen=True)
class Registry:
    """The only durable state: files, jobs, events, adapters, versions, aliases, blobs."""

    home: Home
    db: Database
    blobs: Blobs
    files: Files
    jobs: Jobs
    adapters: Adapters
    uploads: Uploads
    keys: Keys
    permissions: Permissions
    webhooks: Webhooks
    collector: Collector

    @classmethod
    def open(
        cls,
        home: Home,
        *,
        database_url: str | None = None,
        store_url: str | None = None,
        clock: Clock | None = None,
        fs: DurableFS | None = None,
        store: ObjectStore | None = None,
    ) -> Registry:
        """Creates what is missing and migrates the schema. None means TUNEDOCK_DATABASE_URL and TUNEDOCK_STORE_URL,
        and without those SQLite and folders under `home`. `store` wins over a URL.

        Raises BadInput when the home cannot be written, a URL is not known or the schema is newer than this release;
        Unavailable when the database does not answer.
        """
        home.create()
        clock, fs = clock or Clock(), fs or DurableFS()
        db = open_database(home.db_path, database_url or os.environ.get("TUNEDOCK_DATABASE_URL"))
        migrate(db)
        url = store_url or os.environ.get("TUNEDOCK_STORE_URL")
        store = store or (open_store(url) if url else None)
        staging = Staging(fs, home.tmp)
        blobs = open_blobs(home, fs, staging, store)
        adapters = Adapters(db, open_folders(home, fs, clock, store), clock)
        files = Files(db, blobs, staging, clock)
        return cls(
            home=home,
            db=db,
            blobs=blobs,
            files=files,
            jobs=Jobs(db, clock),
            adapters=adapters,
            uploads=Uploads(db, files, clock),
            keys=Keys(db, clock),
            permissions=Permissions(db, clock),
            webhooks=Webhooks(db, clock),
            collector=Collector(db, blobs, fs, clock, home.tmp),
        )

    def known(self, seen: int | None = None) -> Known | None:
        """All that requests are decided by, read together; None while the change counter is still at `seen`."""
        with self.db.read() as session:
            snapshot = self.adapters.snapshot_in(session)
            if snapshot.counter == seen:
                return None
            keys, lent = self.keys.valid_in(session), self.permissions.lent_in(session)
            return Known(snapshot, keys, lent, self.adapters.waits_in(session))

    def change_counter(self) -> int:
        """Rises with every committed write that a server must notice: versions, aliases, pins, a job's status."""
        with self.db.read() as session:
            return change_counter(session)

    def wait_for_change(self, seen: int, timeout_s: float) -> int:
        """The change counter as soon as it differs from `seen`, or after `timeout_s`. For one thread at a time.

        PostgreSQL rings at the commit, SQLite at most a tenth of a second after it.
        """
        deadline = time.monotonic() + timeout_s
        while (counter := self.change_counter()) == seen and (left_s := deadline - time.monotonic()) > 0:
            self.db.wait(left_s)
        return counter

    def close(self) -> None:
        self.db.close()
