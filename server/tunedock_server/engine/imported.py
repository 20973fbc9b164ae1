"""What the fork server imports (see `forking.py`): all that an engine needs, and nothing is started."""

from __future__ import annotations

import atexit
import gc
import os
import signal
from importlib import import_module

from tunedock_registry.imports import leave_out_unused

from .environment import on_cpu

_EVERYWHERE = ("vllm.v1.engine.core", f"{__package__}.patches", f"{__package__}.worker")
_ON_CPU = ("vllm.v1.worker.cpu_worker", f"{__package__}.punica_cpu")

leave_out_unused(cuda=not on_cpu())
for name in (*_EVERYWHERE, *(_ON_CPU if on_cpu() else ())):
    import_module(name)

# A signal for the whole group is for the server, which ends the engine; without both of them the fork server ends too.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
# There is nothing to tidy up then, and taking vLLM apart takes seconds.
atexit.register(os._exit, 0)
# A collection in an engine would write to the header of every object here, and so copy every page.
gc.collect()
gc.freeze()
