"""What registry, aliases and leases must do, as a few dictionaries, and the machine that compares both after every call.

Two registries on one database and one home stand for two servers: each call goes to either of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tunedock_api.errors import TuneDockError
from tunedock_api.names import ModelRef
from tunedock_registry.adapters.folders import is_intact
from tunedock_registry.adapters.intake import PreparedAdapter
from tunedock_registry.adapters.versions import LIVE, SERVED
from tunedock_registry.records import ReadyVersion, Target, VersionState
from tunedock_registry.registry import Registry

from .registry import FakeTime

GRACE_S = 100
NUM_SOURCES = 3
# The first of each comes up more often, so that more happens to one and the same thing.
NAMES, ALIASES = ("one", "one", "two"), ("production", "production", "canary")
Opened = Callable[[], tuple[Registry, Registry, FakeTime]]


@dataclass
class ModelAlias:
    """`stack` holds where the alias has pointed, newest last; a rollback takes one away."""

    stack: list[tuple[Target, ...]] = field(default_factory=list)
    deleted: bool = True
    revision: int = 0

    @property
    def targets(self) -> tuple[Target, ...]:
        return () if self.deleted else self.stack[-1]

    def after_rollback(self) -> list[tuple[Target, ...]]:
        return self.stack if self.deleted else self.stack[:-1]

    def point(self, stack: list[tuple[Target, ...]]) -> None:
        self.stack, self.deleted, self.revision = stack, False, self.revision + 1

    def delete(self) -> None:
        if not self.deleted:
            self.deleted, self.revision = True, self.revision + 1


@dataclass
class ModelVersion:
    id: int
    digest: str
    state: VersionState = "published"
    pinned: bool = False
    since: float = 0.0
    has_files: bool = True  # on its own account; another version may have the same bytes


@dataclass
class ModelAdapter:
    versions: dict[int, ModelVersion] = field(default_factory=dict)
    aliases: dict[str, ModelAlias] = field(default_factory=lambda: {alias: ModelAlias() for alias in ALIASES})
    deleted: bool = True

    def ready(self, targets: Sequence[Target]) -> bool:
        return all(
            target.version in self.versions and self.versions[target.version].state == "ready" for target in targets
        )

    def used(self, number: int) -> bool:
        return any(target.version == number for alias in self.aliases.values() for target in alias.targets)


class AdapterMachine(RuleBasedStateMachine):
    """`opened` are two servers on one registry; subclassed with it and NUM_SOURCES adapters (see `machine_on`)."""

    opened: Opened
    sources: Sequence[PreparedAdapter]

    @initialize()
    def start(self) -> None:
        first, second, self.time = self.opened()
        self.registries = (first, second)
        self.model = {name: ModelAdapter() for name in NAMES}
        self.leases: list[tuple[bool, ReadyVersion]] = []
        for source in range(NUM_SOURCES):
            self.offer(False, "one", source)
            self._promote(False, "one", "production", [Target(source + 1)], None)

    @rule(server=st.booleans(), name=st.sampled_from(NAMES), source=st.sampled_from(range(NUM_SOURCES)))
    def offer(self, server: bool, name: str, source: int) -> None:
        self.publish(server, name, source)
        self._verify(server, list(self.model[name].versions.values())[-1], "ready")

    @rule(server=st.booleans(), name=st.sampled_from(NAMES), source=st.sampled_from(range(NUM_SOURCES)))
    def publish(self, server: bool, name: str, source: int) -> None:
        record = self.registries[server].adapters.publish("default", name, self.sources[source], origin="imported")
        adapter = self.model[name]
        number = len(adapter.versions) + 1
        assert record.number == number
        adapter.versions[number] = ModelVersion(record.id, record.digest)
        adapter.deleted = False

    @rule(server=st.booleans(), pick=st.randoms(use_true_random=False), good=st.booleans())
    def verify(self, server: bool, pick: Random, good: bool) -> None:
        for version in self._some(pick, "published"):
            self._verify(server, version, "ready" if good else "rejected")

    def _verify(self, server: bool, version: ModelVersion, verdict: VersionState) -> None:
        adapters = self.registries[server].adapters
        adapters.set_state(version.id, "verifying")
        adapters.set_state(version.id, verdict)
        version.state, version.since = verdict, self.time.wall_s

    @rule(
        server=st.booleans(),
        name=st.sampled_from(NAMES),
        alias=st.sampled_from(ALIASES),
        pick=st.randoms(use_true_random=False),
        behind=st.sampled_from([None, None, 0, 1]),
        times=st.integers(1, 3),
    )
    def promote(self, server: bool, name: str, alias: str, pick: Random, behind: int | None, times: int) -> None:
        for _ in range(times):
            self._promote(server, name, alias, _some_targets(self.model[name], pick), behind)

    def _promote(self, server: bool, name: str, alias: str, targets: list[Target], behind: int | None) -> None:
        adapter, known = self.model[name], self.model[name].aliases[alias]
        expected = None if behind is None else known.revision - behind
        fresh = expected in (None, known.revision) or (expected == 0 and known.deleted)
        same = tuple(targets) == known.targets
        allowed = not adapter.deleted and fresh and (same or adapter.ready(targets))
        set_alias = self.registries[server].adapters.set_alias
        self._expect(allowed, partial(set_alias, "default", name, alias, targets, expected))
        if allowed and not same:
            known.point([*known.stack, tuple(targets)])

    @rule(server=st.booleans(), name=st.sampled_from(NAMES), alias=st.sampled_from(ALIASES), times=st.integers(1, 3))
    def roll_back(self, server: bool, name: str, alias: str, times: int) -> None:
        adapter, known = self.model[name], self.model[name].aliases[alias]
        for _ in range(times):
            earlier = known.after_rollback()
            allowed = not adapter.deleted and bool(earlier) and adapter.ready(earlier[-1])
            self._expect(allowed, partial(self.registries[server].adapters.rollback, "default", name, alias))
            if allowed:
                known.point(earlier)

    @rule(server=st.booleans(), name=st.sampled_from(NAMES), alias=st.sampled_from(ALIASES))
    def delete_alias(self, server: bool, name: str, alias: str) -> None:
        allowed = not self.model[name].deleted
        adapters = self.registries[server].adapters
        self._expect(allowed, lambda: adapters.delete_alias("default", name, alias))
        if allowed:
            self.model[name].aliases[alias].delete()

    @rule(server=st.booleans(), pick=st.randoms(use_true_random=False))
    def retire(self, server: bool, pick: Random) -> None:
        for version in self._some(pick, *LIVE):
            in_use = any(
                known is version and adapter.used(number)
                for adapter in self.model.values()
                for number, known in adapter.versions.items()
            )
            self._expect(not in_use, partial(self.registries[server].adapters.retire, version.id))
            if not in_use:
                self._leave(version)

    @rule(server=st.booleans(), pick=st.randoms(use_true_random=False), pinned=st.booleans())
    def pin(self, server: bool, pick: Random, pinned: bool) -> None:
        for version in self._some(pick, *LIVE):
            allowed = not pinned or version.state == "ready"
            adapters = self.registries[server].adapters
            self._expect(allowed, partial(adapters.set_pin, version.id, pinned))
            if allowed:
                version.pinned = pinned

    @rule(server=st.booleans(), name=st.sampled_from(NAMES), sure=st.sampled_from([True, False, False, False]))
    def delete_adapter(self, server: bool, name: str, sure: bool) -> None:
        if not sure:
            return
        adapter = self.model[name]
        adapters = self.registries[server].adapters
        self._expect(not adapter.deleted, lambda: adapters.delete_adapter("default", name))
        if not adapter.deleted:
            adapter.deleted = True
            for alias in adapter.aliases.values():
                alias.delete()
            for version in adapter.versions.values():
                if version.state in LIVE:
                    self._leave(version)

    @rule(server=st.booleans(), name=st.sampled_from(NAMES), alias=st.sampled_from(ALIASES), key=st.text(max_size=3))
    def admit(self, server: bool, name: str, alias: str, key: str) -> None:
        """A request comes in: it is pinned to one of the alias's targets until it is over."""
        ref = ModelRef(name, alias=alias)
        version = self.registries[server].adapters.snapshot().resolve("default", ref, key)
        targets = [target.version for target in self.model[name].aliases[alias].targets]
        assert (version is None and not targets) or (version is not None and version.number in targets)
        if version is not None:
            self.leases.append((server, version))

    @precondition(lambda self: self.leases)
    @rule()
    def finish(self) -> None:
        self.leases.pop(0)

    @rule(server=st.booleans(), seconds=st.sampled_from([1, GRACE_S]))
    def collect(self, server: bool, seconds: int) -> None:
        """Time goes by, in which both servers say what they use, and one of them collects."""
        for other in (False, True):
            self.registries[other].adapters.hold(self._used_by(other))
        self.time.advance(seconds)
        leased = self._used_by(False) | self._used_by(True)
        retired = {record.id for record in self.registries[server].adapters.collect(self._used_by(server), GRACE_S)}
        expected = {version.id for version in self._versions() if self._over(version, "retiring", leased)}
        assert retired == expected
        for version in self._versions():
            if version.id in retired:
                version.state = "retired"
        rejected = [version for version in self._versions() if self._over(version, "rejected", leased)]
        for version in rejected:
            version.has_files = False
        for digest in {version.digest for version in rejected} - self._needed():
            assert not self.registries[0].home.adapter_dir(digest).exists()

    def _used_by(self, server: bool) -> set[str]:
        return {version.digest for leased_by, version in self.leases if leased_by == server}

    def _over(self, version: ModelVersion, state: VersionState, leased: set[str]) -> bool:
        """Whether its files may go, for all that this version needs them."""
        old = self.time.wall_s - version.since >= GRACE_S
        return version.state == state and old and version.digest not in leased

    def _needed(self) -> set[str]:
        """Digests of versions that may be served, and of rejected ones that were not collected."""
        return {
            version.digest
            for version in self._versions()
            if version.has_files and version.state in (*SERVED, "rejected")
        }

    @invariant()
    def files_are_there_for_whoever_may_need_them(self) -> None:
        home = self.registries[0].home
        for digest in self._needed() | {lease.digest for _, lease in self.leases}:
            assert is_intact(home.adapter_dir(digest), digest)

    @invariant()
    def the_registry_says_what_the_model_says(self) -> None:
        adapters = self.registries[1].adapters
        snapshot = adapters.snapshot()
        for name, adapter in self.model.items():
            if adapter.deleted:
                assert ("default", name) not in snapshot.adapters
                continue
            states = {
                record.number: (record.state, record.pinned) for record in adapters.versions("default", name).items
            }
            assert states == {number: (known.state, known.pinned) for number, known in adapter.versions.items()}
            aliases = {record.alias: record for record in adapters.aliases("default", name)}
            for alias, known in adapter.aliases.items():
                assert (alias in aliases) == (not known.deleted)
                if not known.deleted:
                    assert (aliases[alias].targets, aliases[alias].revision) == (known.targets, known.revision)

    def _expect(self, allowed: bool, call: Callable[[], object]) -> None:
        try:
            call()
        except TuneDockError:
            assert not allowed
        else:
            assert allowed

    def _versions(self) -> list[ModelVersion]:
        return [version for adapter in self.model.values() for version in adapter.versions.values()]

    def _some(self, pick: Random, *states: VersionState) -> list[ModelVersion]:
        """One version in one of the states, or none."""
        fitting = [version for version in self._versions() if version.state in states]
        return [pick.choice(fitting)] if fitting else []

    def _leave(self, version: ModelVersion) -> None:
        version.state, version.pinned, version.since = "retiring", False, self.time.wall_s


def machine_on(opened: Opened, sources: Sequence[PreparedAdapter]) -> type[AdapterMachine]:
    assert len(sources) == NUM_SOURCES
    return type("AdapterMachineHere", (AdapterMachine,), {"opened": staticmethod(opened), "sources": sources})


def _some_targets(adapter: ModelAdapter, pick: Random) -> list[Target]:
    """One or two versions, most of them there."""
    numbers = [*adapter.versions, len(adapter.versions) + 1]
    chosen = pick.sample(numbers, min(len(numbers), pick.choice((1, 1, 2))))
    return [Target(number, 1.0 + number) for number in chosen]
