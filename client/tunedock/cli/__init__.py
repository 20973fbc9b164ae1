"""The `tunedock` command. Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 auth, 5 conflict, 6 unavailable, 130 Ctrl-C."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Entry point of the console script."""
    from .root import run

    sys.exit(run(sys.argv[1:]))
