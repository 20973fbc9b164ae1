"""The engine seam: what the rest of the server may ask of whatever generates tokens.

One machine: `engine.local.LocalEngine`, an `AsyncLLM` in this process. Fleet: a Ray Serve handle. Requests arrive
resolved and leased: an engine never sees an alias, a name that a caller typed, or a database.

Residency of a version inside one engine: `host` (verified, ready to be computed with, in host memory) -> `slot` (in one of the
`max_loras` places of the batch) -> `pinned` (a slot that is never taken away). Nothing here reads a file in an engine step.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from pydantic import Field
from tunedock_api.manifest import Frozen, ServingProfile

if TYPE_CHECKING:
    from tunedock_registry.models.facts import BaseFacts

Residency = Literal["host", "slot", "pinned"]
FinishReason = Literal["stop", "length", "tool_calls"]
SseStream = AsyncGenerator[bytes, None]

MAX_SLOTS = 256
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Full = Callable[[], Awaitable[None]] | None
"""None, or what to call and await before more is given."""
Take = Callable[[T], Full]
"""Takes a part of a stream, without waiting."""


@runtime_checkable
class Pours(Protocol[T_co]):
    """A stream that can also hand over its parts by itself, which costs less per part than iterating it."""

    async def pour(self, take: Take[T_co]) -> None:
        """Gives everything that is left to `take`. Returns at the end, raises what iterating would."""


class EngineSettings(Frozen):
    """How to start an engine. Sizes are in the unit that the name says; None means "the engine chooses"."""

    model_path: Path
    model_id: str = Field(description="public name of the base model")
    max_loras: int = Field(default=8, ge=1, le=MAX_SLOTS, description="slots: distinct adapters in one batch")
    max_cpu_loras: int = Field(default=32, ge=1, description="adapters in host memory; raised to max_loras if lower")
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 32
    lora_modules: tuple[str, ...] | None = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="last name parts of the modules that can carry an adapter; None: all that the engine can wrap, "
        "embedding and lm_head too, at a cost in every step",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_model_len: int | None = Field(default=None, ge=16, description="tokens; None: what the model and memory allow")
    max_num_seqs: int = Field(default=64, ge=1, description="sequences in one step")
    max_queued_requests: int = Field(default=512, ge=0, description="waiting beyond max_num_seqs; 0 refuses to wait")
    max_num_batched_tokens: int | None = Field(default=None, ge=64, description="tokens in one step")
    kv_cache_bytes: int | None = Field(
        default=None, ge=1 << 20, description="None: 1 GiB on CPU, a share of memory on GPU"
    )
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    compute_threads: int | None = Field(default=None, ge=1, description="CPU only; None: all usable cores")
    enforce_eager: bool | None = Field(default=None, description="None: eager on CPU, graphs on GPU")
    prefix_caching: bool = True
    tool_parser: str | None = Field(default=None, description="vLLM tool parser; None: tool calls stay text")
    max_n: int = Field(default=16, ge=1, description="answers for one prompt")
    seed: int = 0
    start_timeout_s: float = Field(default=600.0, gt=0)
    hang_s: float = Field(default=60.0, gt=0, description="an engine with work that ends no step for so long is dead")
    call_timeout_s: float = Field(default=60.0, gt=0, description="longest wait for one engine call")


@dataclass(frozen=True, slots=True)
class Pinned:
    """What one request runs on: an immutable version, or the base model (`digest is None`).

    `public` is the name that the answer carries; `path` the version's own directory, named by its digest.
    """

    public: str
    digest: str | None = None
    path: Path | None = None
    rank: int = 0
    profile: ServingProfile | None = None

    def __post_init__(self) -> None:
        if (self.digest is None) != (self.path is None):
            raise ValueError("a version has both a digest and a path, the base model neither")


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a started engine can do. `bytes_per_slot` is the cost of one more `max_loras` at `max_lora_rank`: 0 where a slot
    only names what is in host memory.

    `degraded` says in one sentence what does not work as it should, or is None.
    """

    model_id: str
    base: BaseFacts
    max_model_len: int
    max_loras: int
    max_cpu_loras: int
    max_lora_rank: int
    lora_modules: tuple[str, ...]
    dtype: str
    bytes_per_slot: int
    kv_blocks: int
    block_size: int
    lora_backend: Literal["tunedock-cpu", "vllm"]
    device: str = "cpu"
    degraded: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling of a `GenerateRequest`. `None` means the model's default, as it does over REST.

    `structured_outputs` is one of `json` (a JSON schema), `json_object`, `regex`, `choice`, `grammar`.
    """

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logit_bias: Mapping[str, float] | None = None
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    logprobs: int | None = None
    structured_outputs: Mapping[str, Any] | None = None

    def given(self) -> dict[str, Any]:
        """What differs from the defaults, in OpenAI's names."""
        values = {one.name: (getattr(self, one.name), one.default) for one in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, (value, default) in values.items()
            if value != default
        }


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One generation outside the OpenAI shapes. Exactly one of `messages`, `text`, `token_ids` is set.

    `messages` are OpenAI chat messages and `tools` OpenAI tools as plain dictionaries; `options` are those fields of
    OpenAI's request that have nothing to do with sampling, such as `user` and `chat_template_kwargs`.
    """

    request_id: str
    messages: Sequence[Mapping[str, Any]] | None = None
    text: str | None = None
    token_ids: Sequence[int] | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    sampling: Sampling = Sampling()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if sum(prompt is not None for prompt in (self.messages, self.text, self.token_ids)) != 1:
            raise ValueError("set exactly one of messages, text, token_ids")

    def body(self) -> dict[str, Any]:
        """The same as OpenAI's request, without a model. What was not given is absent, so that defaults apply."""
        body = {**self.sampling.given(), **self.options}
        if self.messages is None:
            return body | {"prompt": self.text if self.text is not None else list(self.token_ids or ())}
        if (num_logprobs := body.pop("logprobs", None)) is not None:
            body |= {"logprobs": True, "top_logprobs": num_logprobs}
        if self.tools:
            body["tools"] = [dict(tool) for tool in self.tools]
        return body | {"messages": [dict(message) for message in self.messages]}


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """`top` are the likeliest tokens at that place as (token id, text, logprob), best first."""

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(slots=True)
class GenerateDelta:
    """What is new for answer number `index`. Counts are totals so far; `finish_reason` is set on its last delta.

    `more`: the next delta is of the same engine step and there already. Not frozen, because one is made for every token and
    freezing trebles what that costs; nobody changes one.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    more: bool = False


@dataclass(frozen=True, slots=True)
class Scores:
    """`logprobs[i]` is ln p(token_ids[i + 1] | token_ids[: i + 1]); `top1[i]` the likeliest token at that place."""

    logprobs: tuple[float, ...]
    top1: tuple[int, ...]


class EnginePool(Protocol):
    """Every method raises only TuneDockError (and CancelledError). A stream must be iterated or `aclose()`d."""

    @property
    def facts(self) -> EngineFacts:
        """Valid after `start()`; stays readable while the engine is down."""

    async def start(self) -> None:
        """Starts, or starts again after death; nothing is resident afterwards. Raises BadInput, Unavailable."""

    async def stop(self) -> None:
        """Aborts what runs and ends all processes. Safe to call twice."""

    def alive(self) -> bool:
        """Cheap; False within 1 s after the engine died."""

    async def stage(self, pinned: Pinned) -> None:
        """Reads, verifies and casts beside the engine's steps; returns when the version is in host memory.

        Idempotent. Raises Rejected (wrong contents), Unavailable `adapter_unavailable` (missing or unreadable files,
        with nothing else harmed), Overloaded `adapter_queue_full` (host memory is full: unload something first).
        """

    async def load(self, pinned: Pinned) -> None:
        """Stages if needed and puts the version into a slot, so that its first token comes as fast as its hundredth."""

    async def unload(self, digest: str) -> None:
        """Frees slot and host memory. Unknown digests are fine. Only after the last lease has gone."""

    async def pin(self, digest: str) -> None:
        """Keeps a loaded version in its slot until `unload`. Raises Conflict when it is not loaded or pins run out."""

    async def residency(self) -> dict[str, Residency]:
        """digest -> where it is, for every version that this engine holds."""

    async def chat(self, body: dict[str, Any], pinned: Pinned, request_id: str) -> dict[str, Any] | SseStream:
        """OpenAI chat completion. `body` is the caller's JSON; with `stream` the answer is SSE bytes up to `[DONE]`.

        The engine applies `pinned.profile` where the body is silent. Cancelling the call or closing the stream stops
        the generation. Raises BadInput, Unavailable (not staged, dead engine), Overloaded (engine queue full).
        """

    async def complete(self, body: dict[str, Any], pinned: Pinned, request_id: str) -> dict[str, Any] | SseStream:
        """OpenAI text completion; otherwise as `chat`."""

    async def respond(self, body: dict[str, Any], pinned: Pinned, request_id: str) -> dict[str, Any] | SseStream:
        """OpenAI response, of which nothing is kept; a stream consists of named events. Otherwise as `chat`."""

    def generate(self, request: GenerateRequest, pinned: Pinned) -> AsyncGenerator[GenerateDelta, None]:
        """Token deltas for transports of our own. Raises at the latest on the first iteration what `chat` raises.

        What comes back may also be `Pours`.
        """

    async def score(self, token_ids: Sequence[int], pinned: Pinned) -> Scores:
        """Log-probabilities of a given text under a version, by the serving engine itself (publish gate)."""
