"""`client.adapters`: versions, aliases and their life."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from tunedock_api.errors import BadInput, Conflict, DeadlineExceeded, NotFound, Rejected, model_not_found
from tunedock_api.names import DEFAULT_ALIAS, parse_ref

from . import operations as op
from .diff import Difference, differences
from .pages import collect
from .types import Adapter, Alias, HistoryEntry, Version

CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE = "adapter_config.json", "adapter_model.safetensors", "manifest.json"
_DOWNLOADED = (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE, "README.md")
_WAIT_S = 20.0  # of one request: a server waits up to 30
Ref = str


class AsyncAdapters:
    """Adapters of the project. A `ref` is `support@7`, `support@canary` or `support` (= `support@production`)."""

    def __init__(self, transport: op.Transport) -> None:
        self._transport = transport

    async def get(self, name: str) -> Adapter:
        """Raises NotFound for an unknown name."""
        return Adapter.model_validate(await self._transport.call(op.GET_ADAPTER, {"name": name}))

    async def versions(self, name: str, *, limit: int | None = None) -> list[Version]:
        """Newest first; `limit=None` lists everything."""
        return await collect(self._transport, op.LIST_VERSIONS, Version, {"name": name}, limit=limit)

    async def version(self, ref: Ref) -> Version:
        """The version that `ref` means right now."""
        return Version.model_validate(await self._transport.call(op.GET_VERSION, await self._numbered(ref)))

    async def publish(self, name: str, folder: str | os.PathLike[str]) -> Version:
        """Uploads a PEFT adapter folder as the next version of `name`.

        The version is `published` at first and becomes `ready` or `rejected` when the server has verified it.
        `verdict` waits for that. Raises Rejected with the reason when the files cannot be served on this base model.
        """
        with ExitStack() as stack:
            files = {part: stack.enter_context(path.open("rb")) for part, path in _parts(Path(folder)).items()}
            return Version.model_validate(await self._transport.publish(name, files))

    async def verdict(self, ref: Ref, *, timeout_s: float = 600.0) -> Version:
        """The version as soon as the server has verified it and it is `ready`.

        Raises Rejected with the reason when it is not fit to be served, Conflict when it is offered no more,
        DeadlineExceeded after `timeout_s`.
        """
        at, deadline = await self._numbered(ref), time.monotonic() + timeout_s
        while True:
            wait_s = max(0.0, min(_WAIT_S, deadline - time.monotonic()))
            version = Version.model_validate(await self._transport.call(op.GET_VERSION, at, {"wait_s": wait_s}))
            if version.state not in ("published", "verifying"):
                break
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(f"{version.ref} is still {version.state} after {timeout_s:g} s.")
        if version.state == "rejected":
            raise Rejected(f"{version.ref} was rejected: {version.reason}")
        if version.state != "ready":
            raise Conflict(f"{version.ref} is {version.state}: publish the adapter again.", "version_not_ready")
        return version

    async def promote(
        self, ref: Ref, *, alias: str = DEFAULT_ALIAS, expected_revision: int | None = None, reason: str = ""
    ) -> Alias:
        """Points `alias` of the adapter at the version that `ref` means.

        Raises Conflict when the version is not `ready`, or when the alias has moved past `expected_revision`.
        """
        at = await self._numbered(ref)
        return await self._set_alias(at["name"], alias, {"version": at["version"]}, expected_revision, reason)

    async def split(
        self,
        name: str,
        weights: Mapping[int, float],
        *,
        alias: str,
        expected_revision: int | None = None,
        reason: str = "",
    ) -> Alias:
        """Points `alias` at several versions, each with a share of the requests: `{6: 90, 7: 10}`."""
        targets = [{"version": version, "weight": weight} for version, weight in weights.items()]
        return await self._set_alias(name, alias, {"targets": targets}, expected_revision, reason)

    async def rollback(self, name: str, *, alias: str = DEFAULT_ALIAS, reason: str = "") -> Alias:
        """Points `alias` back at where it was before its last move."""
        body = {"alias": alias, **_given(reason=reason or None)}
        return Alias.model_validate(await self._transport.call(op.ROLLBACK, {"name": name}, body=body))

    async def load(self, ref: Ref) -> Version:
        """Brings the version into the engine of the server that answers, before anybody asks for it; it leaves as others do.

        Raises Conflict (`version_not_ready`), Overloaded when the server's memory is full of adapters in use.
        """
        return Version.model_validate(await self._transport.call(op.LOAD, await self._numbered(ref)))

    async def pin(self, ref: Ref) -> Version:
        """Keeps the version in a slot of the engine."""
        return Version.model_validate(await self._transport.call(op.PIN, await self._numbered(ref)))

    async def unpin(self, ref: Ref) -> Version:
        return Version.model_validate(await self._transport.call(op.UNPIN, await self._numbered(ref)))

    async def history(self, name: str, *, limit: int | None = None) -> list[HistoryEntry]:
        """Moves of all aliases, newest first."""
        return await collect(self._transport, op.HISTORY, HistoryEntry, {"name": name}, limit=limit)

    async def delete(self, name: str) -> None:
        """Deletes the adapter with all its versions. Raises Conflict while an alias or a request uses it."""
        await self._transport.call(op.DELETE_ADAPTER, {"name": name})

    async def manifest(self, ref: Ref) -> op.Json:
        """How the version came to be: lineage, training, metrics, norms, packages."""
        chunks = self._transport.download(op.DOWNLOAD_VERSION, await self._numbered(ref), MANIFEST_FILE)
        manifest: op.Json = json.loads(b"".join([chunk async for chunk in chunks]))
        return manifest

    async def diff(self, before: Ref, after: Ref) -> list[Difference]:
        """What differs between two versions: configuration, data, metrics, weights."""
        return differences(await self.manifest(before), await self.manifest(after))

    async def watch(self, name: str, *, poll_s: float = 0.5) -> AsyncIterator[Adapter]:
        """The adapter now, and again whenever its versions or aliases have changed, without end. Raises NotFound."""
        last: Adapter | None = None
        while True:
            adapter = await self.get(name)
            if adapter != last:
                last = adapter
                yield adapter
            await asyncio.sleep(poll_s)

    async def download(self, ref: Ref, into: str | os.PathLike[str]) -> Path:
        """Writes the version as a PEFT folder that `PeftModel.from_pretrained` loads. Returns the folder.

        Raises BadInput when `into` holds an adapter already.
        """
        folder, at = _empty_folder(Path(into)), await self._numbered(ref)
        for name in _DOWNLOADED:
            await self._download_file(at, name, folder / name)
        return folder

    async def list(self, *, limit: int | None = None) -> list[Adapter]:
        return await collect(self._transport, op.LIST_ADAPTERS, Adapter, limit=limit)

    async def _download_file(self, at: op.Json, name: str, target: Path) -> None:
        """A part file first, so that a broken download never looks like an adapter."""
        part = target.with_suffix(target.suffix + ".part")
        with part.open("wb") as out:
            async for chunk in self._transport.download(op.DOWNLOAD_VERSION, at, name):
                out.write(chunk)
        part.rename(target)

    async def _set_alias(
        self, name: str, alias: str, where: op.Json, expected_revision: int | None, reason: str
    ) -> Alias:
        body = {**where, **_given(expected_revision=expected_revision, reason=reason or None)}
        return Alias.model_validate(await self._transport.call(op.SET_ALIAS, {"name": name, "alias": alias}, body=body))

    async def _numbered(self, ref: Ref) -> op.Json:
        """`{"name", "version"}` of a ref; an alias is looked up, and must mean one version."""
        parsed = parse_ref(ref)
        if parsed is None:
            raise BadInput(f"{ref[:80]!r} is not a reference: write it as name@7 or name@alias.", param="ref")
        if parsed.version is not None:
            return {"name": parsed.name, "version": parsed.version}
        if parsed.checkpoint is not None:
            return {"name": parsed.name, "version": parsed.checkpoint}
        alias = (await self.get(parsed.name)).alias(str(parsed.alias))
        if alias is None or not alias.targets:
            raise model_not_found(ref)
        if len(alias.targets) > 1:
            raise BadInput(f"{ref} means several versions ({alias.shown}): name one of them.", param="ref")
        return {"name": parsed.name, "version": alias.targets[0].version}


def _parts(folder: Path) -> dict[str, Path]:
    """The files to upload. Raises NotFound when the folder is not a PEFT adapter folder."""
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise NotFound(f"{str(folder)!r} is not an adapter folder: {' and '.join(missing)} not found in it.")
    manifest = folder / MANIFEST_FILE
    names = {CONFIG_FILE: folder / CONFIG_FILE, WEIGHTS_FILE: folder / WEIGHTS_FILE}
    return names | ({"manifest": manifest} if manifest.is_file() else {})


def _empty_folder(folder: Path) -> Path:
    if (folder / WEIGHTS_FILE).exists():
        raise BadInput(f"{str(folder)!r} already holds an adapter: choose another folder.", param="into")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _given(**fields: object) -> op.Json:
    return {key: value for key, value in fields.items() if value is not None}
