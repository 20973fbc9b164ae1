"""Reports on training files, made in a process beside this one for the model and the limits of the live engine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tunedock_registry.data.inspection import Inspection
from tunedock_registry.data.isolation import Inspected, IsolatedInspector
from tunedock_registry.records import FileRecord
from tunedock_registry.registry import Registry

from ..pool import EnginePool


class FileInspector:
    """Blocking in `inspect`; `compare` is for the event loop."""

    def __init__(self, registry: Registry, pool: EnginePool, child: IsolatedInspector) -> None:
        self._registry = registry
        self._pool = pool
        self._child = child

    def inspect(
        self, record: FileRecord, validation: FileRecord | None = None, knobs: dict[str, Any] | None = None
    ) -> Inspected:
        """`knobs`: of a job, where they change how examples read. Raises BadInput when the file exceeds the limits of an
        inspection, or with the knob that has to change; NotFound when it is gone."""
        facts = self._pool.facts
        return self._child.inspect(
            Inspection(
                training=str(self._path(record)),
                validation=str(self._path(validation)) if validation else None,
                max_length=facts.max_model_len,
                max_rank=facts.max_lora_rank,
                knobs=knobs,
            )
        )

    async def compare(self, record: FileRecord, validation: FileRecord) -> Inspected:
        """The report with the overlap of the two files."""
        return await asyncio.to_thread(self.inspect, record, validation)

    def close(self) -> None:
        self._child.close()

    def _path(self, record: FileRecord) -> Path:
        return self._registry.files.path(record)
