"""`client.keys`: API keys of projects. Only an admin key may ask. Over REST, also where everything else goes over gRPC."""

from __future__ import annotations

from collections.abc import Sequence

from . import operations as op
from .pages import collect
from .types import Key


class AsyncKeys:
    """`project` None means the caller's own."""

    def __init__(self, transport: op.Transport) -> None:
        self._transport = transport

    async def create(
        self, name: str, scopes: Sequence[str], *, project: str | None = None, expires_after_s: int | None = None
    ) -> Key:
        """A new key; its secret (`key`) is shown only here. Scopes such as `inference`, `adapters:read`, `admin`.

        Raises BadInput for a scope that does not exist, PermissionDenied without an admin key.
        """
        body: op.Json = {"name": name, "scopes": list(scopes)}
        given = {"project": project, "expires_after_s": expires_after_s}
        body |= {key: value for key, value in given.items() if value is not None}
        return Key.model_validate(await self._transport.call(op.CREATE_KEY, body=body))

    async def revoke(self, key_id: str, *, project: str | None = None) -> None:
        """Effective within a second on every server."""
        await self._transport.call(op.REVOKE_KEY, {"id": key_id}, {"project": project})

    async def list(self, *, project: str | None = None, limit: int | None = None) -> list[Key]:
        """Newest first, revoked ones too; never the secrets."""
        return await collect(self._transport, op.LIST_KEYS, Key, query={"project": project}, limit=limit)
