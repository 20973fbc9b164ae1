"""Everything `tunedock serve` can be told. Flags win over `TUNEDOCK_*` in the environment, which wins over these defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from .pool import EngineSettings

# The environment holds text; a Literal of numbers would refuse "16".
SlotRank = Annotated[
    Literal[8, 16, 32, 64, 128, 256, 320, 512],
    BeforeValidator(lambda value: int(value) if isinstance(value, str) and value.isdecimal() else value),
]
DEFAULT_MODEL = "smollm2-135m-instruct"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class GateSettings(BaseSettings):
    """When the publish gate says that the engine reproduces what the trainer saw. Log-probabilities are in nats."""

    model_config = SettingsConfigDict(env_prefix="TUNEDOCK_GATE_", frozen=True, extra="forbid")

    max_mean_abs_diff: float = Field(default=0.15, gt=0, description="mean |engine - trainer| over all probe tokens")
    effect_share: float = Field(
        default=0.03, ge=0, description="added to that: a share of the trainer's effect; bf16 errs in proportion"
    )
    min_top1_agreement: float = Field(
        default=0.9, ge=0, le=1, description="share of the same best tokens; one may differ always"
    )
    min_effect: float = Field(default=1e-3, ge=0, description="mean |adapter - base|; 0 lets a no-op pass")
    shift_tolerance: float = Field(
        default=0.35, gt=0, description="how far the slope of engine shift over trainer shift may be from 1"
    )
    min_shift: float = Field(default=0.02, ge=0, description="trainer shifts below this are too small for a slope")
    timeout_s: float = Field(default=120.0, gt=0, description="longest check of one version")
    concurrency: int = Field(
        default=2, ge=1, description="probe examples in one step of the engine: streams wait for them"
    )


class Settings(BaseSettings):
    """Frozen; unknown keys are refused. Durations end in `_s`, sizes in `_bytes`; "0 disables" where it says so."""

    model_config = SettingsConfigDict(env_prefix="TUNEDOCK_", frozen=True, extra="forbid")

    model: str = DEFAULT_MODEL
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0 takes a free one")
    grpc_port: int = Field(default=8001, ge=0, le=65535, description="0 takes a free one")
    grpc_tls_cert: str | None = Field(default=None, description="PEM file; gRPC is TLS then")
    grpc_tls_key: str | None = Field(default=None, description="PEM file of the certificate's key")
    grpc_tls_client_ca: str | None = Field(default=None, description="PEM file; callers must show its certificate")
    home: str | None = None
    database_url: str | None = None
    store_url: str | None = None
    trainer: bool = Field(default=True, description="run a trainer process beside the server")
    trainer_nice: int = Field(
        default=19, ge=0, le=19, description="how far the trainer's CPU work gives way to the server's; 0 shares evenly"
    )
    api_key: str | None = Field(default=None, repr=False, description="bootstrap admin key; set: authentication is on")
    insecure_no_auth: bool = Field(default=False, description="allow a non-loopback host without authentication")

    # Engine. `EngineSettings` says what each one means.
    max_loras: int | None = Field(
        default=None,
        description="distinct adapters in one batch; empty: 8, on CPU, where slots cost nothing, max_num_seqs",
    )
    max_cpu_loras: int = Field(default=32, description="adapters in host memory; at least max_loras")
    max_lora_rank: SlotRank = 32
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto",
        description="auto: the model's; float32 on a CPU that is slower with bfloat16 (x86 before AVX-512)",
    )
    max_model_len: int | None = None
    max_num_seqs: int = 64
    kv_cache_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    compute_threads: int | None = None
    enforce_eager: bool | None = None
    tool_parser: str | None = None

    # Admission
    max_inflight: int = Field(default=512, ge=1, description="requests admitted at once; more get 503")
    max_waiting_per_adapter: int = Field(
        default=256, ge=1, description="requests waiting for one adapter; more get 429"
    )
    adapter_wait_s: float = Field(default=20.0, gt=0, description="longest wait for a slot, and for a load, then 503")
    slot_patience_s: float = Field(
        default=1.0, gt=0, description="a waiting adapter older than this takes a busy slot's turn"
    )
    request_timeout_s: float = Field(default=900.0, gt=0, description="longest life of one request")
    write_timeout_s: float = Field(default=60.0, gt=0, description="a stream's reader may stall this long")
    max_request_bytes: int = Field(default=4 << 20, ge=1024, description="JSON bodies")
    max_upload_bytes: int = Field(default=512 << 20, ge=1024, description="one file of POST /v1/files")
    max_adapter_bytes: int = Field(default=4 << 30, ge=1024, description="one published adapter")
    max_completion_tokens: int = Field(default=32_768, ge=1, description="cap of max_tokens of one request")

    webhook_allow_private: bool = Field(default=False, description="call webhooks at addresses that are not public")

    # Lifecycle
    poll_s: float = Field(
        default=1.0, gt=0, description="how often the registry's change counter is read even if no bell rings"
    )
    drain_grace_s: float = Field(default=0.0, ge=0, description="after SIGTERM, serve on this long before refusing")
    drain_timeout_s: float = Field(default=60.0, ge=0, description="then wait this long for requests in flight")
    collect_every_s: float = Field(default=30.0, gt=0, description="retired versions and expired files are collected")
    collect_grace_s: float = Field(
        default=60.0,
        ge=0,
        description="files of retired and rejected versions stay this long; 10 or more where several servers share them",
    )
    engine_restarts: int = Field(default=5, ge=0, description="deaths within engine_window_s before giving up")
    engine_window_s: float = Field(default=600.0, gt=0)

    def webhooks_may_be_private(self) -> bool:
        """Without authentication everybody who may set a webhook is on this machine anyway."""
        return self.webhook_allow_private or not self.authenticated()

    def authenticated(self) -> bool:
        return bool(self.api_key)

    def engine(self, model_path: str, model_id: str) -> EngineSettings:
        """The engine's part of these settings."""
        names = (
            "max_loras", "max_cpu_loras", "max_lora_rank", "dtype", "max_model_len", "max_num_seqs", "kv_cache_bytes",
            "gpu_memory_utilization", "compute_threads", "enforce_eager", "tool_parser",
        )  # fmt: skip
        chosen = {name: value for name in names if (value := getattr(self, name)) is not None}
        return EngineSettings.model_validate({"model_path": model_path, "model_id": model_id, **chosen})
