"""What the root command hands to every other one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tunedock import TuneDock

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")]
AliasOption = Annotated[str, typer.Option("--alias", help="The alias to move.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Kept in the history.")]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="At most this many, newest first.")]


@dataclass
class Settings:
    """Global flags. `base_url` None means the environment decides."""

    base_url: str | None = None
    debug: bool = False


@contextmanager
def client_of(ctx: typer.Context) -> Iterator[TuneDock]:
    """A client for the service that the flags and the environment name."""
    from tunedock import TuneDock

    with TuneDock(ctx.ensure_object(Settings).base_url) as client:
        yield client
