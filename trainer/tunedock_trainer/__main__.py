"""`python -m tunedock_trainer`: the trainer as a process of its own."""

from __future__ import annotations

import sys

import typer
from tunedock_api.errors import TuneDockError

from .cli import trainer


def main() -> None:
    """One clear line instead of a traceback for what the user can mend."""
    try:
        typer.run(trainer)
    except TuneDockError as error:
        sys.exit(f"tunedock trainer: {error}")


if __name__ == "__main__":
    main()
