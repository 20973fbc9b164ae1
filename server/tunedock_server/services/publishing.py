"""Takes an adapter that somebody brings: two files and perhaps a manifest, checked before anything is stored.

The checks run in a confined process (`IsolatedIntake`) against the live engine; then the publish gate decides the rest.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError
from tunedock_api.errors import BadInput, Rejected
from tunedock_api.manifest import CONFIG_FILE, WEIGHTS_FILE, Lineage, Manifest, ServingProfile
from tunedock_api.names import check_name
from tunedock_registry import background
from tunedock_registry.adapters.intake import ManifestParts
from tunedock_registry.adapters.isolation import IsolatedIntake
from tunedock_registry.records import Attempt, VersionRecord
from tunedock_registry.registry import Registry

from ..pool import EngineFacts, EnginePool

MAX_CONFIG_BYTES = 256 * 1024
MAX_MANIFEST_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
_NUM_THREADS = 2


@dataclass(frozen=True)
class Upload:
    """Streams at their start. `serving` None keeps the profile of the manifest."""

    config: BinaryIO
    weights: BinaryIO
    manifest: BinaryIO | None = None
    serving: ServingProfile | None = None


class Publisher:
    """What the live engine cannot serve is refused with its numbers. `published` wakes the gate."""

    def __init__(
        self,
        registry: Registry,
        pool: EnginePool,
        published: Callable[[], Awaitable[None]],
        max_adapter_bytes: int,
        intake: IsolatedIntake,
    ) -> None:
        self._registry = registry
        self._pool = pool
        self._published = published
        self._max_adapter_bytes = max_adapter_bytes
        self._intake = intake
        self._threads = background.threads(_NUM_THREADS, "publish")

    async def publish(self, project: str, name: str, upload: Upload, attempt: Attempt) -> VersionRecord:
        """A new version in state `published`.

        Raises BadInput; Rejected with the first reason why it cannot be served; Conflict; Unavailable.
        """
        check_name(name, "adapter", "name")
        facts = self._pool.facts
        if name == facts.model_id:
            raise BadInput(f"{name!r} is the base model: choose another adapter name.", param="name")
        work = asyncio.get_running_loop().run_in_executor(
            self._threads, self._store, project, name, upload, attempt, facts
        )
        record = await work
        await self._published()
        return record

    def close(self) -> None:
        """Waits for what is being stored."""
        self._threads.shutdown()
        self._intake.close()

    def _store(self, project: str, name: str, upload: Upload, attempt: Attempt, facts: EngineFacts) -> VersionRecord:
        parts = _parts(upload)
        config = _read(upload.config, MAX_CONFIG_BYTES, CONFIG_FILE)
        with tempfile.TemporaryDirectory(dir=self._registry.home.tmp, prefix="upload-") as folder:
            weights = Path(folder) / WEIGHTS_FILE
            _copy(upload.weights, weights, self._max_adapter_bytes)
            prepared = self._intake.prepare(config, weights, facts.base, parts)
            check_modules(prepared.manifest, facts)
            origin = parts.lineage.origin
            return self._registry.adapters.publish(project, name, prepared, origin=origin, attempt=attempt)


def check_modules(manifest: Manifest, facts: EngineFacts) -> None:
    """Raises Rejected for modules that this engine has no slots for: vLLM would drop their weights without a word."""
    extra = sorted(set(manifest.lora.target_modules) - set(facts.lora_modules))
    if extra:
        raise Rejected(
            f"The adapter changes {', '.join(extra)}, but this engine carries adapters on "
            f"{', '.join(facts.lora_modules)} only.",
            param=CONFIG_FILE,
        )


def _parts(upload: Upload) -> ManifestParts:
    """What the author's manifest claims that cannot be measured. Its digest and identity are made anew."""
    if upload.manifest is None:
        return ManifestParts(Lineage(origin="imported"), serving=upload.serving or ServingProfile())
    claimed = _manifest(_read(upload.manifest, MAX_MANIFEST_BYTES, "manifest"))
    notes = {**claimed.lineage.notes, "imported_from": {"digest": claimed.digest, "origin": claimed.lineage.origin}}
    lineage = claimed.lineage.model_copy(update={"origin": "imported", "job_id": None, "notes": notes})
    return ManifestParts(
        lineage,
        base=claimed.identity.base_model,
        serving=upload.serving or claimed.identity.serving,
        probe=claimed.probe,
        training=claimed.training,
        metrics={key: value for key, value in claimed.metrics.items() if key != "delta_norms"},
        packages=claimed.packages,
        trained_rank=claimed.lora.trained_rank,
        trained_alpha=claimed.lora.trained_alpha,
        trained_rslora=claimed.lora.trained_rslora,
    )


def _manifest(raw: bytes) -> Manifest:
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise Rejected(f"manifest: {where or 'file'}: {first['msg']}", param="manifest") from None


def _read(stream: BinaryIO, limit_bytes: int, what: str) -> bytes:
    raw = stream.read(limit_bytes + 1)
    if len(raw) > limit_bytes:
        raise Rejected(f"{what} is larger than {limit_bytes:,} bytes.", param=what)
    return raw


def _copy(source: BinaryIO, target: Path, limit_bytes: int) -> None:
    left = limit_bytes
    with target.open("wb") as out:
        while chunk := source.read(_CHUNK_BYTES):
            left -= len(chunk)
            if left < 0:
                raise BadInput(f"{target.name} is larger than {limit_bytes:,} bytes.", "payload_too_large", target.name)
            out.write(chunk)
