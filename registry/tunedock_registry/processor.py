"""What this machine's processor computes well with, as the operating system lists it."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# oneDNN and ACL, which torch multiplies with, have bfloat16 products from these on; AVX-512 without the bfloat16
# instructions converts in registers. Below, torch 2.13 falls back to a loop that is five to seven times slower than float32.
_NEEDED = {"x86_64": frozenset({"avx512bw", "avx512vl", "avx512dq"}), "aarch64": frozenset({"bf16"})}


@cache
def features() -> frozenset[str]:
    """Names of the first processor's instruction sets; empty where the system does not say."""
    return frozenset(_first("flags", "Features").split())


@cache
def model() -> str:
    return _first("model name", "CPU part") or platform.processor() or platform.machine()


def _first(*keys: str) -> str:
    """The value of the first line with one of the keys."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(keys)), "")


def multiplies_bfloat16(found: frozenset[str] | None = None, machine: str | None = None) -> bool:
    """False where matrix products in bfloat16 are slower than in float32. True where nothing is known."""
    found = features() if found is None else found
    needed = _NEEDED.get(platform.machine() if machine is None else machine)
    return needed is None or not found or needed <= found
