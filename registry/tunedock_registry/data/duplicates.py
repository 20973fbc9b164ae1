"""Exact and near duplicates, contradictions and overlap of two sets, in one pass.

Near duplicates share at least 80 % of their three-word shingles (Jaccard). MinHash signatures (Broder 1997) with 16 bands
of 4 find the candidates, the shingles themselves decide. Shingles that a fifth of all examples have are the data's
template, not its content: they do not count, and neither do system messages. Everything is deterministic.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from .checks import called_functions
from .conversation import text_of
from .examples import ChatExample, CompletionExample, Example, Message, PreferenceExample, message_weight

NEAR = 0.8
_SHINGLE_WORDS = 3
_BANDS, _ROWS = 16, 4
_MAX_CANDIDATES = 32
_MAX_CHARS = 200_000
_TEMPLATE_SHARE, _TEMPLATE_COUNT = 0.2, 4
# Scripts without spaces count by character, everything else by word; signs count: 1 + 1 is not 1 - 1.
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")

_random = np.random.Generator(np.random.PCG64(20_240_229))
_FACTORS = _random.integers(1, 1 << 63, _BANDS * _ROWS, dtype=np.uint64) | np.uint64(1)
_OFFSETS = _random.integers(0, 1 << 63, _BANDS * _ROWS, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Match:
    """An example repeats the `of`-th remembered one (from 0); similarity is 1.0 for exact ones."""

    of: int
    kind: Literal["exact", "near"]
    similarity: float


class DuplicateIndex:
    """A set of examples to compare with, read once. About 1 KB an example.

    `matches[n]` says which earlier example the n-th one repeats; `prompts[n]` is a digest of what it asks.
    """

    def __init__(self, examples: Iterable[Example]) -> None:
        digests: list[bytes] = []
        shingles: list[NDArray[np.uint32]] = []
        self.prompts: list[bytes] = []
        for example in examples:
            prompt, answer = _prompt_and_answer(example)
            self.prompts.append(_hash(prompt))
            digests.append(_hash(f"{prompt}\x1f{answer}"))
            shingles.append(_shingles(example))
        self.contradictions = _contradictions(self.prompts, digests)
        self._template = _common(shingles)
        self._shingles: list[NDArray[np.uint32]] = []
        self._exact: dict[bytes, int] = {}
        self._bands: dict[tuple[int, bytes], list[int]] = {}
        self.matches = [self._add(*pair) for pair in zip(digests, shingles, strict=True)]

    def find(self, example: Example) -> Match | None:
        """The best match in the set; the earliest of equals."""
        known = self._exact.get(_hash("\x1f".join(_prompt_and_answer(example))))
        if known is not None:
            return Match(known, "exact", 1.0)
        shingles = self._content(_shingles(example))
        return self._nearest(shingles, _band_keys(shingles))

    def _add(self, digest: bytes, shingles: NDArray[np.uint32]) -> Match | None:
        number = len(self._shingles)
        self._shingles.append(shingles := self._content(shingles))
        known = self._exact.setdefault(digest, number)
        if known != number:
            return Match(known, "exact", 1.0)
        keys = _band_keys(shingles)
        match = self._nearest(shingles, keys)
        for key in keys:
            self._bands.setdefault(key, []).append(number)
        return match

    def _content(self, shingles: NDArray[np.uint32]) -> NDArray[np.uint32]:
        return np.setdiff1d(shingles, self._template, assume_unique=True)

    def _nearest(self, shingles: NDArray[np.uint32], keys: Sequence[tuple[int, bytes]]) -> Match | None:
        hits = Counter(number for key in keys for number in self._bands.get(key, ()))
        ranked = sorted(hits, key=lambda number: (-hits[number], number))[:_MAX_CANDIDATES]
        scored = [(_jaccard(shingles, self._shingles[number]), -number) for number in ranked]
        similarity, negative = max(scored, default=(0.0, 0))
        return Match(-negative, "near", round(similarity, 4)) if similarity >= NEAR else None


def clusters(examples: Sequence[Example]) -> list[int]:
    """A cluster number for each example: duplicates, near duplicates and examples with the same prompt share one."""
    index = DuplicateIndex(examples)
    parents = list(range(len(examples)))
    first_with: dict[bytes, int] = {}
    for number, (prompt, match) in enumerate(zip(index.prompts, index.matches, strict=True)):
        if match is not None:
            _join(parents, number, match.of)
        _join(parents, number, first_with.setdefault(prompt, number))
    return [_root(parents, number) for number in range(len(examples))]


def _contradictions(prompts: Sequence[bytes], digests: Sequence[bytes]) -> int:
    """How many prompts come with more than one answer."""
    answers: dict[bytes, set[bytes]] = {}
    for prompt, digest in zip(prompts, digests, strict=True):
        answers.setdefault(prompt, set()).add(digest)
    return sum(len(found) > 1 for found in answers.values())


def _hash(text: str) -> bytes:
    return blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


def _prompt_and_answer(example: Example) -> tuple[str, str]:
    """The text before the last trained turn, and that turn (both sides of a preference)."""
    if isinstance(example, CompletionExample):
        return example.prompt, example.completion
    if isinstance(example, ChatExample):
        last = max((n for n, message in enumerate(example.messages) if message_weight(message)), default=-1)
        return _flat(example.messages[:last]), _flat(example.messages[last:])
    return _flat(example.messages), _flat((example.preferred, example.non_preferred))


def _flat(messages: Iterable[Message]) -> str:
    return "\n".join(_flat_message(message) for message in messages)


def _flat_message(message: Message) -> str:
    called = [f"{f['name']}({f['arguments']})" for _, f in called_functions(message)]
    return " ".join([f"{message.get('role', '')}:", text_of(message), *called])


def _shingles(example: Example) -> NDArray[np.uint32]:
    """Sorted, without repeats; of the first 200 000 characters, so that one huge example costs no gigabytes."""
    words = _WORD.findall(_content_text(example)[:_MAX_CHARS].casefold())
    count = max(1, len(words) - _SHINGLE_WORDS + 1)
    hashes = {crc32(" ".join(words[i : i + _SHINGLE_WORDS]).encode()) for i in range(count)}
    return np.array(sorted(hashes), dtype=np.uint32)


def _content_text(example: Example) -> str:
    if isinstance(example, CompletionExample):
        return f"{example.prompt}\n{example.completion}"
    messages = [*example.messages]
    if isinstance(example, PreferenceExample):
        messages += [example.preferred, example.non_preferred]
    return _flat(message for message in messages if message.get("role") not in ("system", "developer"))


def _common(shingles: Sequence[NDArray[np.uint32]]) -> NDArray[np.uint32]:
    if not shingles:
        return np.array([], dtype=np.uint32)
    values, counts = np.unique(np.concatenate(shingles), return_counts=True)
    common: NDArray[np.uint32] = values[counts > max(_TEMPLATE_COUNT, _TEMPLATE_SHARE * len(shingles))]
    return common


def _band_keys(shingles: NDArray[np.uint32]) -> list[tuple[int, bytes]]:
    """Multiply-shift hashing, wrapping in 64 bits: the smallest value under each of the 64 functions, in bands of 4."""
    if not shingles.size:
        return []
    mixed = (shingles.astype(np.uint64)[None, :] * _FACTORS[:, None] + _OFFSETS[:, None]) >> np.uint64(32)
    signature = mixed.min(axis=1)
    return [(band, signature[band * _ROWS : (band + 1) * _ROWS].tobytes()) for band in range(_BANDS)]


def _jaccard(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> float:
    shared = np.intersect1d(a, b, assume_unique=True).size
    return float(shared / (a.size + b.size - shared))


def _join(parents: list[int], a: int, b: int) -> None:
    a, b = _root(parents, a), _root(parents, b)
    parents[max(a, b)] = min(a, b)


def _root(parents: list[int], number: int) -> int:
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = parents[number]
    return number
