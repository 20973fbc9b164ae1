"""RMSNorm through vLLM's own C kernels on CPU.

vLLM 0.32 ships them in its CPU library but lets them run on GPUs only (kernels/vllm_c.py, `supported=GPGPU_DEVICE`); on CPU a
norm is nine torch operators. The kernels take a quarter of the time at 32 rows and at 512 (27 -> 6 us, 238 -> 71 us on one
core), 61 times a step for SmolLM2-135M. Its `silu_and_mul` kernel was measured too and is four times slower than torch.
"""

from __future__ import annotations

from typing import Any

import torch
from tunedock_registry.processor import multiplies_bfloat16

PROVIDER = "tunedock_c"
_VECTOR = 8  # the kernels refuse rows that are no multiple of it


def fits(x: torch.Tensor, weight: torch.Tensor | None, variance_size: int | None) -> bool:
    return (
        variance_size is None
        and weight is not None
        and weight.dtype == x.dtype
        # vLLM's build for AVX2 cuts bfloat16 off instead of rounding it.
        and (x.dtype != torch.bfloat16 or multiplies_bfloat16())
        and x.shape[-1] % _VECTOR == 0
        and x.is_contiguous()
    )


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> torch.Tensor:
    """`x [..., hidden]`, `weight [hidden]`: x / rms(x) * weight."""
    output = torch.empty_like(x)
    torch.ops._C.rms_norm(output, x, weight, epsilon)
    return output


def fused_add_rms_norm(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """In place: the residual becomes x + residual, x its norm."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


def install() -> bool:
    """Registers both with vLLM and makes them the default on CPU; `--ir-op-priority` still wins. False without kernels."""
    from vllm import ir
    from vllm.config.kernel import IrOpPriorityConfig
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    if not hasattr(torch.ops._C, "rms_norm"):
        return False
    ir.ops.rms_norm.register_impl(PROVIDER, supports_args=_fits_norm)(rms_norm)
    ir.ops.fused_add_rms_norm.register_impl(PROVIDER, supports_args=_fits_fused, inplace=True)(fused_add_rms_norm)
    ours = [PROVIDER, "native"]

    def get_default_ir_op_priority(cls: type, vllm_config: Any) -> Any:
        return IrOpPriorityConfig.with_default(["native"], rms_norm=ours, fused_add_rms_norm=ours)

    type(current_platform).get_default_ir_op_priority = classmethod(get_default_ir_op_priority)
    return True


def _fits_norm(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    return fits(x, weight, variance_size)


def _fits_fused(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> bool:
    return fits(x, weight, variance_size) and x_residual.is_contiguous()
