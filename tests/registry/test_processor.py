"""Which processors multiply in bfloat16 at least as fast as in float32."""

from __future__ import annotations

import pytest
from tunedock_registry import processor

AVX2 = frozenset({"sse2", "avx", "avx2", "fma"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
NEON = frozenset({"fp", "asimd"})

KNOWN = {
    "AVX2 alone converts in a slow loop": (AVX2, "x86_64", False),
    "AVX-512 converts in registers": (AVX512, "x86_64", True),
    "AVX-512 without vl is not enough": (AVX512 - {"avx512vl"}, "x86_64", False),
    "ARM with the instructions": (NEON | {"bf16"}, "aarch64", True),
    "ARM without them": (NEON, "aarch64", False),
    "a feature of another machine does not count": (AVX2 | {"bf16"}, "x86_64", False),
    "a machine that we know nothing about": (AVX2, "riscv64", True),
    "a system that lists no features": (frozenset[str](), "x86_64", True),
}


@pytest.mark.parametrize(("found", "machine", "answer"), KNOWN.values(), ids=KNOWN.keys())
def test_bfloat16_is_refused_only_where_it_is_known_to_be_slow(
    found: frozenset[str], machine: str, answer: bool
) -> None:
    assert processor.multiplies_bfloat16(found, machine) is answer


def test_this_machine_has_an_answer_of_its_own() -> None:
    assert processor.multiplies_bfloat16() is processor.multiplies_bfloat16(processor.features())
    assert processor.model()
