"""How long a job will take and how much memory it will need, before it starts. Estimates, not promises: within about a half.

The constants were fitted to a 135 M model on CPU cores with bf16 units; `python -m benchmarks.train` prints estimate over
measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# What the frozen base costs a token: forward, and backward through the activations (not through the weights).
_FLOPS_PER_PARAMETER = 4
# bf16; fp32 weights, gradient and two moments, and the bf16 copy that computes.
_BASE_BYTES, _ADAPTER_BYTES = 2, 18
_RUNTIME_BYTES = 450 << 20


@dataclass(frozen=True, slots=True)
class BaseSize:
    """`modules` maps a linear module to (in_features, out_features); `adapted` are those that get an adapter."""

    modules: Mapping[str, tuple[int, int]]
    vocab_size: int
    hidden_size: int

    @property
    def num_parameters(self) -> int:
        """Linear modules and one embedding matrix."""
        return sum(a * b for a, b in self.modules.values()) + self.vocab_size * self.hidden_size

    def adapter_parameters(self, rank: int) -> int:
        return sum(rank * (a + b) for a, b in self.modules.values())


def memory_bytes(size: BaseSize, rank: int, tokens_per_pass: int) -> int:
    """Base, adapter with its optimizer, the activations of one pass, the runtime.

    A pass keeps three quarters of all linear modules' inputs and outputs in bf16 (some are one tensor, some are computed
    again); a layer's own needs and what the allocator leaves unused fill the rest.
    """
    per_token = 2 * sum(a + b for a, b in size.modules.values())
    fixed = _BASE_BYTES * size.num_parameters + _ADAPTER_BYTES * size.adapter_parameters(rank) + _RUNTIME_BYTES
    return fixed + tokens_per_pass * per_token


def train_seconds(num_tokens: int, n_epochs: int, tokens_per_s: float) -> float:
    return num_tokens * n_epochs / tokens_per_s


def cpu_tokens_per_s(size: BaseSize, num_cores: int, flops_per_core: float = 2e11) -> float:
    """For a machine that has trained nothing yet. 2e11: measured on cores with bf16 matrix units, 135 M parameters."""
    return num_cores * flops_per_core / (_FLOPS_PER_PARAMETER * size.num_parameters)
