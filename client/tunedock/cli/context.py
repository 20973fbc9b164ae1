"""What the root command hands to every other one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tunedock_api.errors import NotFound, TuneDockError

if TYPE_CHECKING:
    from tunedock import TuneDock

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")]
AliasOption = Annotated[str, typer.Option("--alias", help="The alias to move.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Kept in the history.")]
# Parameters that name a model or a version.
_NAMES = frozenset({"model", "compare", "ref", "name", "before", "after"})
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="At most this many, newest first.")]


@dataclass
class Settings:
    """Global flags. `base_url` None means the environment decides."""

    base_url: str | None = None
    debug: bool = False


@contextmanager
def client_of(ctx: typer.Context) -> Iterator[TuneDock]:
    """A client for the service that the flags and the environment name. What is not found gets a "Did you mean"."""
    from tunedock import TuneDock

    with TuneDock(ctx.ensure_object(Settings).base_url) as client:
        try:
            yield client
        except NotFound as error:
            error.message += _hint(client, ctx.params)
            raise


def _hint(client: TuneDock, params: Mapping[str, Any]) -> str:
    """Names near to those that the caller typed; empty when there are none, or nobody answers."""
    typed = [value for key, value in params.items() if key in _NAMES and isinstance(value, str)]
    try:
        known = [model.id for model in client.models()]
    except TuneDockError:
        return ""
    near = [match for text in typed if text not in known for match in get_close_matches(text, known, 1)]
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
