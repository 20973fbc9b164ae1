"""The catalog as OpenAI models."""

from __future__ import annotations

from tunedock_api.errors import model_not_found
from tunedock_api.names import DEFAULT_ALIAS, parse_ref

from ..catalog import Catalog
from . import wire


class ModelService:
    """`started`: Unix time that stands for the base model's creation."""

    def __init__(self, catalog: Catalog, started: int) -> None:
        self._catalog = catalog
        self._started = started

    def list(self, project: str) -> list[wire.Json]:
        """Base first; then per adapter its own name (= production), its aliases, its versions and checkpoints."""
        shown = [wire.base_model(self._catalog.base_model, self._started)]
        for (owner, name), view in sorted(self._catalog.snapshot.adapters.items()):
            if owner != project:
                continue
            for alias in sorted(view.shares, key=lambda alias: (alias != DEFAULT_ALIAS, alias)):
                if view.shares[alias]:
                    label = name if alias == DEFAULT_ALIAS else f"{name}@{alias}"
                    shown.append(wire.adapter_model(view.shares[alias][0][1], label))
            shown += [wire.adapter_model(version) for version in view.versions.values()]
            shown += [wire.adapter_model(version) for version in view.checkpoints.values()]
        return shown

    def get(self, project: str, model: str) -> wire.Json:
        """Raises NotFound `model_not_found`."""
        if model == self._catalog.base_model:
            return wire.base_model(model, self._started)
        ref = parse_ref(model)
        version = self._catalog.snapshot.resolve(project, ref, sticky_key="") if ref else None
        if version is None:
            raise model_not_found(model)
        return wire.adapter_model(version, model)
