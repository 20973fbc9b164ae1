"""`tunedock adapters merge` and `tunedock adapters convert`: on the registry of this home, without a server.

A server on the same registry sees the new version, verifies it and offers it like any other.
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tunedock_api.errors import BadInput, model_not_found
from tunedock_api.manifest import Lineage
from tunedock_api.names import DEFAULT_PROJECT, check_name, parse_ref
from tunedock_registry.layout import Home

if TYPE_CHECKING:
    from tunedock_registry.records import VersionRecord
    from tunedock_registry.registry import Registry

    from ..base import Base

Into = Annotated[str, typer.Option("--into", help="Adapter that gets the new version.")]
Model = Annotated[str | None, typer.Option(help="Base model: name, folder or Hugging Face id.")]
Place = Annotated[Path | None, typer.Option(help="Home folder; default TUNEDOCK_HOME.")]
Project = Annotated[str, typer.Option(help="Owner of the adapters.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def merge(
    sources: Annotated[list[str], typer.Argument(help="Versions, for example support@3 sales@production.")],
    into: Into,
    weights: Annotated[str | None, typer.Option(help="One weight each, 0.7,0.3; default equal shares.")] = None,
    method: Annotated[
        str, typer.Option(help="linear, ties, dare_linear, dare_ties, magnitude_prune, cat or svd.")
    ] = "linear",
    density: Annotated[float, typer.Option(help="Share of values that pruning methods keep.")] = 0.5,
    model: Model = None,
    home: Place = None,
    project: Project = DEFAULT_PROJECT,
    as_json: AsJson = False,
) -> None:
    """Merge several versions into a new one."""
    from .merge import MergePlan
    from .merge import merge as merged
    from .publishing import probed, publish_pairs

    check_name(into, "adapter", "into")
    with _opened(home) as registry:
        parents = [_version(registry, project, ref) for ref in sources]
        folders = [registry.adapters.path(parent) for parent in parents]
        plan = MergePlan(_weights(weights, len(sources)), method, density)  # type: ignore[arg-type]  # checked next
        plan.check(folders)
        base = _base(registry, model)
        result = merged(base.path, folders, plan, base.served_dtype)
        notes = {
            "method": method,
            "weights": list(plan.weights),
            "distance_from_weighted_sum": result.relative_distance,
        }
        lineage = Lineage(origin="merged", parents=tuple(parent.ref for parent in parents), notes=notes)
        examples = [tokens for parent in parents for tokens in probed(parent)]
        version = publish_pairs(registry, base, project, into, result.pairs, lineage, examples)
    _tell(version, notes, as_json)


def convert(
    folder: Annotated[Path, typer.Argument(help="PEFT folder: DoRA, PiSSA, OLoRA, CorDA, LoftQ or LoRA-GA.")],
    into: Into,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the plain LoRA; more rank, less error.")] = 64,
    max_error: Annotated[float, typer.Option(help="Refuse above this relative error of the weights' change.")] = 0.5,
    model: Model = None,
    home: Place = None,
    project: Project = DEFAULT_PROJECT,
    as_json: AsJson = False,
) -> None:
    """Convert an adapter that cannot be served into a plain LoRA, with the error that this costs."""
    from .convert import check_convertible
    from .convert import convert as converted
    from .publishing import publish_pairs

    check_name(into, "adapter", "into")
    config = check_convertible(folder)
    with _opened(home) as registry:
        base = _base(registry, model, rank)
        fit = converted(base.path, folder, rank, base.served_dtype)
        if fit.relative_error > max_error:
            raise BadInput(
                f"At rank {rank} the plain LoRA is {fit.relative_error:.3f} (relative) from the adapter, more than "
                f"--max-error {max_error}: raise --rank.",
                param="rank",
            )
        notes = {
            "kind": "dora" if config.get("use_dora") else str(config.get("init_lora_weights", "lora")),
            "relative_error": fit.relative_error,
            "worst_module": fit.worst_module,
            "worst_error": fit.worst_error,
        }
        lineage = Lineage(origin="converted", notes=notes)
        version = publish_pairs(registry, base, project, into, fit.pairs, lineage, [])
    _tell(version, notes, as_json)


def _opened(home: Path | None) -> closing[Registry]:
    from tunedock_registry.registry import Registry

    return closing(Registry.open(Home.resolve(home)))


def _version(registry: Registry, project: str, text: str) -> VersionRecord:
    """The ready version that a reference names now, with its probe. Raises NotFound."""
    ref = parse_ref(text)
    found = ref and registry.adapters.snapshot().resolve(project, ref, None)
    if not found:
        raise model_not_found(text)
    return registry.adapters.by_id(found.id)


def _weights(text: str | None, count: int) -> tuple[float, ...]:
    if text is None:
        return (1.0 / count,) * count
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise BadInput(f"--weights {text!r}: give numbers separated by commas, such as 0.7,0.3.") from error


def _base(registry: Registry, model: str | None, rank: int = 512) -> Base:
    from tunedock_registry.models import resolve_model

    from ..base import load_base

    local = resolve_model(model, registry.home)
    return load_base(local.path, local.model_id, max_rank=rank)


def _tell(version: VersionRecord, notes: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"ref": version.ref, "digest": version.digest, "state": version.state, "notes": notes}))
    else:
        typer.echo(version.ref)
        typer.echo(", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in notes.items()), err=True)
