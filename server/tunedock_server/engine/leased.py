"""How vLLM's serving classes learn which adapter a request runs on: from its lease, never from a name in the body."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.lora.request import LoRARequest


@dataclass(frozen=True, slots=True)
class Lease:
    """What the request that is being handled runs on."""

    public: str
    lora: LoRARequest | None


LEASE: ContextVar[Lease] = ContextVar("tunedock_lease")


class PublicNames(OpenAIServingModels):
    def model_name(self, lora_request: LoRARequest | None = None) -> str:
        return LEASE.get().public


class Leased:
    """Replaces the two places where vLLM turns the body's `model` into an adapter."""

    async def _check_model(self, request: Any) -> None:
        return None

    def _maybe_get_adapters(self, request: Any, supports_default_mm_loras: bool = False) -> LoRARequest | None:
        return LEASE.get().lora
