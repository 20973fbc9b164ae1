"""The catalog as OpenAI models."""

from __future__ import annotations

from tunedock_api.errors import BadInput, PermissionDenied, model_not_found
from tunedock_api.names import DEFAULT_ALIAS, ModelRef, parse_ref

from ..catalog import Catalog
from . import wire
from .adapters import AdapterService, Who


class ModelService:
    """`started`: Unix time that stands for the base model's creation."""

    def __init__(self, catalog: Catalog, adapters: AdapterService, started: int) -> None:
        self._catalog = catalog
        self._adapters = adapters
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
        return shown + [wire.adapter_model(version, ref) for ref, version in self._catalog.lent_to(project)]

    def get(self, project: str, model: str) -> wire.Json:
        """Raises NotFound `model_not_found`."""
        if model == self._catalog.base_model:
            return wire.base_model(model, self._started)
        version = self._catalog.version(project, model, sticky_key="")
        if version is None:
            raise model_not_found(model)
        return wire.adapter_model(version, model)

    async def delete(self, who: Who, model: str) -> None:
        """`name@7` or a checkpoint: that version, with the aliases that mean only it. `name`: the whole adapter.

        Running requests finish. Raises PermissionDenied for the base model, NotFound, BadInput for an alias.
        """
        if model == self._catalog.base_model:
            raise PermissionDenied(f"{model} is the base model of this server and cannot be deleted.")
        ref = parse_ref(model)
        if ref is None or self._catalog.snapshot.resolve(who.project, ref, sticky_key="") is None:
            raise model_not_found(model)
        if ref.version is None and ref.checkpoint is None:
            await self._delete_adapter(who, model, ref)
            return
        if ref.version is not None:
            await self._leave_aliases(who, ref.name, ref.version)
        await self._adapters.retire(who.project, ref.name, str(ref.version or ref.checkpoint), "model deleted")

    async def _delete_adapter(self, who: Who, model: str, ref: ModelRef) -> None:
        if model != ref.name:
            raise BadInput(f"{model} is an alias: delete it under /v1/adapters/{ref.name}/aliases.", param="model")
        await self._adapters.delete(who, ref.name, "model deleted")

    async def _leave_aliases(self, who: Who, name: str, number: int) -> None:
        """Takes the version out of every alias that names it. Compare-and-swap: a promote in between is an error."""
        for alias in self._adapters.known_aliases(who.project, name):
            rest = [target for target in alias.targets if target.version != number]
            if len(rest) == len(alias.targets):
                continue
            if rest:
                await self._adapters.set_alias(who, name, alias.alias, rest, alias.revision, "model deleted")
            else:
                await self._adapters.delete_alias(who, name, alias.alias, alias.revision, "model deleted")
