"""Child processes for tests: from a server that has everything imported, so that each costs 20 ms instead of a second."""

from __future__ import annotations

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tunedock_registry.registry", "alembic.command", "safetensors.numpy", "psycopg"])
