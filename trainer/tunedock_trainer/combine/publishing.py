"""From A and B to a version in the registry, with a probe from the trainer's own forward pass like any trained one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tunedock_api.manifest import WEIGHTS_FILE, Lineage, ProbeExample
from tunedock_registry.adapters.intake import ManifestParts, prepare
from tunedock_registry.records import VersionRecord
from tunedock_registry.registry import Registry

from ..adapter import ModuleLora
from ..base import Base
from ..export import PREFIX, export_config, served_adapter
from ..losses import Item
from ..probe import make_probe
from ..rows import Tokens
from .lowrank import Pairs

# For adapters that bring no probe of their own: ordinary English, scored from the second token on.
_TEXTS = (
    "The committee met on Tuesday to discuss the budget for the coming year and the repairs to the old bridge.",
    "Water boils at one hundred degrees Celsius at sea level, and at a lower temperature high in the mountains.",
    "Please send the invoice to the address below, and let me know when the parcel has left the warehouse.",
    "A function that calls itself needs a case that ends the recursion, or it will never return.",
)


def publish_pairs(
    registry: Registry, base: Base, project: str, name: str, pairs: Pairs, lineage: Lineage, examples: Sequence[Tokens]
) -> VersionRecord:
    """Writes, reads back, probes and publishes. `examples` are what the probe scores; none means ordinary English."""
    with tempfile.TemporaryDirectory(dir=registry.home.tmp, prefix="combine-") as folder:
        weights = Path(folder) / WEIGHTS_FILE
        _write(pairs, weights)
        served = served_adapter(weights, base.groups, dtype=base.dtype, device=base.device)
        items = [Item((tokens,)) for tokens in examples or english(base)]
        parts = ManifestParts(lineage=lineage, base=base.facts.identity, probe=make_probe(base, served, items))
        config = export_config(_modules(pairs), base.facts.identity.id)
        prepared = prepare(config, weights, base.facts, parts)
        return registry.adapters.publish(project, name, prepared, origin=lineage.origin)


def probed(version: VersionRecord) -> list[Tokens]:
    """The token rows of a version's own probe."""
    probe = version.manifest.probe
    return [] if probe is None else [_scored(example) for example in probe.examples]


def english(base: Base) -> list[Tokens]:
    return [_row(base.tokenizer.encode(text, add_special_tokens=False)) for text in _TEXTS]


def _row(token_ids: Sequence[int]) -> Tokens:
    return Tokens(tuple(token_ids), (0.0, *(1.0 for _ in token_ids[1:])))


def _scored(example: ProbeExample) -> Tokens:
    weights = tuple(float(position >= example.start) for position in range(len(example.token_ids)))
    return Tokens(example.token_ids, weights)


def _write(pairs: Pairs, path: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for name, (a, b) in pairs.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"], tensors[f"{PREFIX}{name}.lora_B.weight"] = a, b
    save_file(dict(sorted(tensors.items())), path)


def _modules(pairs: Pairs) -> list[ModuleLora]:
    return [ModuleLora(name, a.shape[1], b.shape[0], rank=a.shape[0], scaling=1.0) for name, (a, b) in pairs.items()]
