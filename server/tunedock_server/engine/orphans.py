"""An engine process whose server was killed must not live on: it holds memory and cores that the next server needs."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """In a child of `multiprocessing`: ends this process as soon as its parent is gone. Elsewhere does nothing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait, args=(parent.sentinel,), name="tunedock-parent", daemon=True).start()


def _wait(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
