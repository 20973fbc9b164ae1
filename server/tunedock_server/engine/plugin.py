"""Entry point `vllm.general_plugins`: vLLM calls `register` in every process that it starts.

Active only where our server asked for it, so that a stock `vllm serve` in the same environment stays stock.
"""

from __future__ import annotations

import os

from .environment import ACTIVE

_registered = False


def register() -> None:
    """Installs our patches. Cheap and idempotent; a vLLM that we do not know is left as it is."""
    global _registered
    if _registered or os.environ.get(ACTIVE) != "1":
        return
    _registered = True
    from . import orphans, patches

    orphans.end_with_parent()
    patches.install()
