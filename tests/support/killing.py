"""Work for a process that is going to be killed."""

from __future__ import annotations

import random
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

from .shelf import Shelf

SEEDS = range(4)


def publish_for_ever(folder: Path, ready: Connection) -> None:
    """Publishes, promotes, retires and collects until it is killed. Tells `ready` when it begins."""
    shelf = Shelf.open(folder)
    adapters = shelf.registry.adapters
    sources = [shelf.prepare(seed) for seed in SEEDS]
    ready.send("working")
    for _ in count():
        version = adapters.publish("default", "support", random.choice(sources), origin="imported")
        adapters.set_state(version.id, "verifying")
        adapters.set_state(version.id, "ready")
        shelf.promote(version.number or 0)
        for old in adapters.in_state("ready", "published", "verifying"):
            if old.id < version.id:
                adapters.retire(old.id)
        shelf.time.advance(1_000)
        adapters.collect(grace_s=1)
