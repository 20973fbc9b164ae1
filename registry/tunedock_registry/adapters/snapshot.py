"""The registry's state as a server needs it for every request: in memory, immutable, resolved without a lock."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from tunedock_api.names import ModelRef

from ..records import AliasRecord, ReadyVersion
from .aliases import pick

Shares = tuple[tuple[float, ReadyVersion], ...]
_NO_SHARES: Mapping[str, Shares] = {}


@dataclass(frozen=True, slots=True)
class AdapterView:
    """One adapter: its ready versions, and its aliases as (cumulative weight, version) in the order of the targets."""

    versions: Mapping[int, ReadyVersion]
    checkpoints: Mapping[str, ReadyVersion]
    shares: Mapping[str, Shares]
    aliases: Mapping[str, AliasRecord]


@dataclass(frozen=True)
class Snapshot:
    """All `ready` versions and all aliases as of change `counter`."""

    counter: int = 0
    adapters: Mapping[tuple[str, str], AdapterView] = field(default_factory=dict)

    def resolve(self, project: str, ref: ModelRef, sticky_key: str | None = None) -> ReadyVersion | None:
        """The version that serves `ref`, None when there is none. An alias without `sticky_key` picks at random."""
        view = self.adapters.get((project, ref.name))
        if view is None:
            return None
        if ref.version is not None:
            return view.versions.get(ref.version)
        if ref.checkpoint is not None:
            return view.checkpoints.get(ref.checkpoint)
        return _choose(view.shares.get(ref.alias or ""), ref, sticky_key)

    def versions(self) -> Iterator[ReadyVersion]:
        """Every version that may be asked for, checkpoints included."""
        for view in self.adapters.values():
            yield from view.versions.values()
            yield from view.checkpoints.values()

    def aliases(self) -> Iterator[AliasRecord]:
        for view in self.adapters.values():
            yield from view.aliases.values()


def _choose(shares: Shares | None, ref: ModelRef, sticky_key: str | None) -> ReadyVersion | None:
    if not shares:
        return None
    if len(shares) == 1:
        return shares[0][1]
    # The name is part of the key: a caller in the canary of one adapter is not in every canary.
    return pick(shares, f"{ref}\0{secrets.token_hex(8) if sticky_key is None else sticky_key}")


def build(counter: int, versions: Iterable[ReadyVersion], aliases: Iterable[AliasRecord]) -> Snapshot:
    """`versions` are the ready ones, in any order."""
    numbered: dict[tuple[str, str], dict[int, ReadyVersion]] = {}
    tagged: dict[tuple[str, str], dict[str, ReadyVersion]] = {}
    moved: dict[tuple[str, str], dict[str, AliasRecord]] = {}
    untagged: dict[str, ReadyVersion] = {}  # one for all, as most adapters have neither checkpoints nor aliases
    unnamed: dict[str, AliasRecord] = {}
    for version in versions:
        key = (version.project, version.adapter)
        if version.number is not None:
            numbered.setdefault(key, {})[version.number] = version
        elif version.tag is not None:
            tagged.setdefault(key, {})[version.tag] = version
    for alias in aliases:
        moved.setdefault((alias.project, alias.adapter), {})[alias.alias] = alias
    keys = numbered.keys() | tagged.keys()
    return Snapshot(
        counter,
        {key: _view(numbered.get(key, {}), tagged.get(key, untagged), moved.get(key, unnamed)) for key in keys},
    )


def _view(
    versions: dict[int, ReadyVersion], checkpoints: dict[str, ReadyVersion], aliases: dict[str, AliasRecord]
) -> AdapterView:
    shares = {name: _shares(alias, versions) for name, alias in aliases.items()} if aliases else _NO_SHARES
    return AdapterView(versions, checkpoints, shares, aliases)


def _shares(alias: AliasRecord, versions: dict[int, ReadyVersion]) -> Shares:
    """A target that is not ready is left out: its share falls to the others."""
    present = [target for target in alias.targets if target.version in versions]
    bounds = accumulate(target.weight for target in present)
    return tuple((bound, versions[target.version]) for bound, target in zip(bounds, present, strict=True))
