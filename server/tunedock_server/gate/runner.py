"""The publish gate: takes every published version through the serving engine and says ready or rejected.

The probe of a trained version holds what the trainer's own forward pass said about held-out examples; the engine has to
say the same. An imported version without a probe is asked only whether it does anything and stays finite.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

from tunedock_api.errors import BadInput, Conflict, NotFound, Overloaded, Rejected, Unavailable
from tunedock_api.manifest import ProbeExample
from tunedock_registry.records import VersionRecord, VersionState
from tunedock_registry.registry import Registry

from ..pool import EnginePool, Pinned, Scores
from ..residency.residents import Residents
from ..settings import GateSettings
from .judge import Measured, Verdict, judge

log = logging.getLogger(__name__)

IMPORT_TEXTS, IMPORT_TOKENS = 2, 9  # streams wait for each of these tokens
RECHECK_S = 5.0
BASE_CACHE_SIZE = 256

ACTOR = "tunedock"
OnVerdict = Callable[[VersionRecord, Verdict], Awaitable[None]]
FirstAlias = Callable[[VersionRecord], str | None]


class Gate:
    """Checks one version at a time, oldest first. `wake` after a publish saves the wait for the next look.

    `first_alias` names the alias that a version gets when it is the first to pass, or None; called in a thread.
    `on_verdict` runs after the state has been written: events, a new snapshot.
    """

    def __init__(
        self,
        registry: Registry,
        pool: EnginePool,
        residents: Residents,
        pinned: Callable[[VersionRecord], Pinned],
        limits: GateSettings,
        on_verdict: OnVerdict,
        first_alias: FirstAlias,
    ) -> None:
        self._registry = registry
        self._pool = pool
        self._residents = residents
        self._pinned = pinned
        self._limits = limits
        self._on_verdict = on_verdict
        self._first_alias = first_alias
        self._wake = asyncio.Event()
        self._base_scores: dict[tuple[int, ...], Scores] = {}

    def wake(self) -> None:
        self._wake.set()

    async def engine_started(self) -> None:
        """Another engine may round differently. Scoring the base here also spares the first version that wait."""
        self._base_scores.clear()
        for tokens in import_texts(self._pool.facts.base.vocab_size):
            await self._base(tokens)

    async def run(self) -> None:
        while True:
            try:
                await self.check_pending()
            except Exception:
                log.exception("the publish gate failed; trying again in %.0f s", RECHECK_S)
            try:
                await asyncio.wait_for(self._wake.wait(), RECHECK_S)
            except TimeoutError:
                continue
            finally:
                self._wake.clear()

    async def check_pending(self) -> None:
        for version in await asyncio.to_thread(self._registry.adapters.pending):
            await self._check(version)

    async def _check(self, version: VersionRecord) -> None:
        set_state = self._registry.adapters.set_state
        try:
            await asyncio.to_thread(set_state, version.id, "verifying")
            verdict = await self._verdict(version)
            if verdict is None:
                return
            state: VersionState = "ready" if verdict.passed else "rejected"
            alias = await asyncio.to_thread(self._first_alias, version)
            version = await asyncio.to_thread(
                set_state, version.id, state, verdict.reason or None, verdict.parity, first_alias=alias, actor=ACTOR
            )
        except (Conflict, NotFound) as error:
            log.info("%s left the gate meanwhile: %s", version.ref, error.message)
            return
        log.info("%s is %s %s", version.ref, version.state, verdict.reason)
        await self._on_verdict(version, verdict)

    async def _verdict(self, version: VersionRecord) -> Verdict | None:
        """None when the engine cannot say now: the version stays in `verifying` and is asked again."""
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                return judge(await self._measure(version), self._limits)
        except (Rejected, BadInput) as error:
            return Verdict({"status": "failed"}, error.message)
        except Unavailable as error:
            if error.code == "adapter_unavailable":
                return Verdict({"status": "failed"}, error.message)
            log.warning("the gate could not check %s now: %s", version.ref, error.message)
        except Overloaded as error:
            log.warning("the gate could not check %s now: %s", version.ref, error.message)
        except TimeoutError:
            log.warning("the gate did not finish %s within %.0f s", version.ref, self._limits.timeout_s)
        return None

    async def _measure(self, version: VersionRecord) -> list[Measured]:
        pinned = self._pinned(version)
        leave = await self._residents.use(pinned)
        try:
            probe = version.manifest.probe
            if probe is not None:
                return await self._gather([self._score_probe(pinned, example) for example in probe.examples])
            texts = import_texts(self._pool.facts.base.vocab_size)
            return await self._gather([self._score_text(pinned, tokens) for tokens in texts])
        finally:
            leave()

    async def _gather(self, work: Sequence[Awaitable[Measured]]) -> list[Measured]:
        turns = asyncio.Semaphore(self._limits.concurrency)

        async def one(item: Awaitable[Measured]) -> Measured:
            async with turns:
                return await item

        return list(await asyncio.gather(*map(one, work)))

    async def _score_probe(self, pinned: Pinned, example: ProbeExample) -> Measured:
        adapter = await self._pool.score(example.token_ids, pinned)
        return Measured(adapter, await self._base(example.token_ids), example.start, example)

    async def _score_text(self, pinned: Pinned, tokens: tuple[int, ...]) -> Measured:
        return Measured(await self._pool.score(tokens, pinned), await self._base(tokens))

    async def _base(self, tokens: tuple[int, ...]) -> Scores:
        """The base model's scores; the versions of an adapter often share their probe texts."""
        known = self._base_scores.get(tokens)
        if known is None:
            known = await self._pool.score(tokens, Pinned(self._pool.facts.model_id))
            while len(self._base_scores) >= BASE_CACHE_SIZE:
                self._base_scores.pop(next(iter(self._base_scores)))
            self._base_scores[tokens] = known
        return known


def import_texts(vocab_size: int) -> list[tuple[int, ...]]:
    """Token sequences that excite a foreign adapter: random, and always the same, so that the base is scored once."""
    rng = random.Random(IMPORT_TOKENS)  # noqa: S311 - test texts, not secrets
    return [tuple(rng.randrange(vocab_size) for _ in range(IMPORT_TOKENS)) for _ in range(IMPORT_TEXTS)]
