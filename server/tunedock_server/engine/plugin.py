"""Entry point `vllm.general_plugins`: vLLM calls `register` in every process that it starts.

Active only where our server asked for it, so that a stock `vllm serve` in the same environment stays stock.
"""

from __future__ import annotations

import os

from .environment import ACTIVE


def register() -> None:
    """Installs our patches. Cheap and idempotent; a vLLM that we do not know is left as it is."""
    if os.environ.get(ACTIVE) == "1":
        from .patches import install

        install()
