"""Entry point `vllm.general_plugins`: vLLM calls `register` in every process that it starts.

Active only where our server asked for it, so that a stock `vllm serve` in the same environment stays stock.
"""

from __future__ import annotations

import os
import sys

from .environment import ACTIVE

# Seconds a thread may keep the interpreter while others wait for it. Python's 5 ms are a third of a decode step, which
# gives the interpreter away at every operator and would stand still that long while an adapter is being read.
_SWITCH_S = 0.0005
_registered = False


def register() -> None:
    """Installs our patches. Cheap and idempotent; a vLLM that we do not know is left as it is."""
    global _registered
    if _registered or os.environ.get(ACTIVE) != "1":
        return
    _registered = True
    from . import orphans, patches

    sys.setswitchinterval(_SWITCH_S)
    orphans.end_with_parent()
    patches.install()
