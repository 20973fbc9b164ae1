"""Versions that come and go leave nothing behind but their rows."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.shelf import Shelf
from support.sizes import sized


@pytest.fixture
def shelf(fast_folder: Path) -> Iterator[Shelf]:
    shelf = Shelf.open(fast_folder)
    yield shelf
    shelf.registry.close()


def _cycle(shelf: Shelf, seed: int) -> None:
    """Version n is promoted, version n - 1 retired and collected."""
    adapters = shelf.registry.adapters
    version = shelf.ready(seed=seed % 5)
    shelf.promote(version.number or 0)
    for old in adapters.in_state("ready"):
        if old.id != version.id:
            adapters.retire(old.id)
    adapters.snapshot()
    shelf.time.advance(1_000)
    adapters.collect(grace_s=100)


def _footprint(shelf: Shelf) -> tuple[int, int]:
    """(files, open file descriptors)"""
    home = shelf.registry.home
    files = sum(len(found) for folder in (home.adapters, home.tmp) for _, _, found in os.walk(folder))
    return files, len(os.listdir("/proc/self/fd"))


def _run(shelf: Shelf, cycles: int) -> int:
    """Bytes by which memory has grown since the cycles warmed up. Fails when files or descriptors have grown."""
    for seed in range(10):
        _cycle(shelf, seed)
    before, memory = _footprint(shelf), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(cycles):
        _cycle(shelf, seed)
    assert _footprint(shelf) == before
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024


def test_publishing_and_retiring_leaves_no_files_behind(shelf: Shelf) -> None:
    _run(shelf, 50)


@pytest.mark.parametrize("cycles", sized(campaign=1_000, slow=2_000))
def test_any_number_of_cycles_costs_no_memory_files_or_descriptors(shelf: Shelf, cycles: int) -> None:
    grown = _run(shelf, cycles)
    print(f"memory grew by {grown / 2**20:.1f} MiB in {cycles} cycles")
    assert grown < 16 * 2**10 * cycles
