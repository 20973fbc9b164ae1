"""The server of `support.running` on a loop of its own thread, for tests that are not asynchronous themselves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .running import Running, running


@contextmanager
def threaded(folder: Path, **settings: Any) -> Iterator[Running]:
    """Only `url`, `base` and `server.registry` may be touched from outside the server's thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="threaded-server")
    thread.start()
    context = running(folder, **settings)
    try:
        started = asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(60)
        try:
            yield started
        finally:
            asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()
