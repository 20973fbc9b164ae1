"""What changed between two versions: configuration, data, metrics, weights. Pure, on their manifests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

NORMS = "delta_norms"
# Part of the manifest -> how a person calls it.
SECTIONS = {"lora": "config", "training": "config", "lineage": "data", "metrics": "metrics", "packages": "packages"}
_LARGEST = 5


@dataclass(frozen=True)
class Difference:
    """One field. `before` and `after` are plain JSON; None where a side does not have it."""

    section: str
    field: str
    before: Any
    after: Any

    @property
    def change(self) -> float | None:
        """`after - before` of numbers."""
        numbers = all(
            isinstance(side, int | float) and not isinstance(side, bool) for side in (self.before, self.after)
        )
        return self.after - self.before if numbers else None


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """Every field of the two manifests that differs, section by section."""
    found = list(_compared("base", _base(before), _base(after)))
    found += _compared("serving", _serving(before), _serving(after))
    for part, section in SECTIONS.items():
        found += _compared(section, _without_norms(before.get(part)), _without_norms(after.get(part)))
    return found + norm_differences(_norms(before), _norms(after))


def norm_differences(before: Mapping[str, float], after: Mapping[str, float]) -> list[Difference]:
    """The size of the whole change of the base, and the modules in which it differs most."""
    if not before or not after:
        return []
    total = Difference("weights", "norm of the change", _total(before), _total(after))
    moved = sorted(before.keys() | after.keys(), key=lambda name: -abs(after.get(name, 0) - before.get(name, 0)))
    largest = [Difference("weights", name, before.get(name), after.get(name)) for name in moved[:_LARGEST]]
    return [total, *(one for one in largest if one.before != one.after)]


def _compared(section: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield Difference(section, name, before.get(name), after.get(name))


def _base(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return _flat((manifest.get("identity") or {}).get("base_model") or {})


def _serving(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return _flat((manifest.get("identity") or {}).get("serving") or {})


def _without_norms(part: Mapping[str, Any] | None) -> dict[str, Any]:
    return _flat({key: value for key, value in (part or {}).items() if key != NORMS})


def _norms(manifest: Mapping[str, Any]) -> dict[str, float]:
    norms: dict[str, float] = (manifest.get("metrics") or {}).get(NORMS) or {}
    return norms


def _total(norms: Mapping[str, float]) -> float:
    return round(math.hypot(*norms.values()), 6)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat
