"""What a fine-tuning job may ask for: OpenAI's `method` and TuneDock's own knobs.

The knobs stand in the request body under the key `tunedock` (with the openai client: `extra_body={"tunedock": {…}}`).
Unknown keys are refused with their dotted path. "auto" is resolved by `hyperparameters.py` when the job starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator, model_validator
from tunedock_api.errors import BadInput
from tunedock_api.manifest import Frozen
from tunedock_api.names import is_name, parse_ref

KNOBS_KEY = "tunedock"
Auto = Literal["auto"]
_Model = TypeVar("_Model", bound=BaseModel)
_OR_AUTO = {True: '"auto" or ', False: ""}


def _integer(low: int, high: int, *, auto: bool = True) -> BeforeValidator:
    """Accepts an integer in the range and, with `auto`, the word "auto"; JSON true is no integer."""

    def check(value: Any) -> Any:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if (auto and value == "auto") or (is_integer and low <= value <= high):
            return value
        raise ValueError(f"must be {_OR_AUTO[auto]}an integer from {low} to {high}")

    return BeforeValidator(check)


def _number(test: Callable[[float], bool], says: str, *, auto: bool = True) -> BeforeValidator:
    def check(value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if (auto and value == "auto") or (is_number and test(value)):
            return value
        raise ValueError(f"must be {_OR_AUTO[auto]}{says}")

    return BeforeValidator(check)


def _one_of(types: tuple[type, ...], says: str, *, auto: bool) -> BeforeValidator:
    """Accepts values of exactly these types: pydantic would read "yes" or 1 as true."""

    def check(value: Any) -> Any:
        if (auto and value == "auto") or type(value) in types:
            return value
        raise ValueError(f"must be {_OR_AUTO[auto]}{says}")

    return BeforeValidator(check)


_POSITIVE = "a number above 0"
# What `apply_chat_template` takes besides variables of the template.
NOT_TEMPLATE_KWARGS = frozenset({
    "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message",
    "tokenize", "tokenizer_kwargs", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask",
})  # fmt: skip
Switch = Annotated[bool, _one_of((bool,), "true or false", auto=False)]
TemplateValue = Annotated[
    bool | int | str, _one_of((bool, int, str), "a string, an integer or a truth value", auto=False)
]
BatchSize = Annotated[int | Auto, _integer(1, 256)]
Epochs = Annotated[int | Auto, _integer(1, 50)]
Multiplier = Annotated[float | Auto, _number(lambda x: x > 0, _POSITIVE)]
Beta = Annotated[float | Auto, _number(lambda x: 0 < x <= 2, "a number above 0 and at most 2")]
Rank = Annotated[int, _integer(1, 512, auto=False)]
Alpha = Annotated[float, _number(lambda x: x > 0, _POSITIVE, auto=False)]
Fraction = Annotated[float, _number(lambda x: 0 <= x < 1, "a number from 0 to below 1", auto=False)]


class SupervisedHyperparameters(Frozen):
    """One epoch is one pass over the data; `batch_size` counts examples in one optimizer step."""

    n_epochs: Epochs = "auto"
    batch_size: BatchSize = "auto"
    learning_rate_multiplier: Multiplier = Field(default="auto", description="times the base rate for this model")


class DpoHyperparameters(SupervisedHyperparameters):
    beta: Beta = Field(default="auto", description="weight of the reference model; auto: 0.1")


class Supervised(Frozen):
    hyperparameters: SupervisedHyperparameters = SupervisedHyperparameters()


class Dpo(Frozen):
    hyperparameters: DpoHyperparameters = DpoHyperparameters()


class Method(Frozen):
    """`{"type": "supervised"|"dpo", "<type>": {"hyperparameters": {…}}}`; the inner object may be missing."""

    type: Literal["supervised", "dpo"] = "supervised"
    supervised: Supervised | None = None
    dpo: Dpo | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _offered(cls, value: Any) -> Any:
        if value not in ("supervised", "dpo"):
            raise ValueError(f"must be 'supervised' or 'dpo', not {str(value)[:40]!r}")
        return value

    @model_validator(mode="after")
    def _only_the_chosen(self) -> Method:
        other = "dpo" if self.type == "supervised" else "supervised"
        if getattr(self, other) is not None:
            raise ValueError(f"has settings for '{other}', but its type is '{self.type}'")
        return self

    @property
    def hyperparameters(self) -> SupervisedHyperparameters:
        """Those of the chosen method; a DpoHyperparameters for dpo."""
        if self.type == "dpo":
            return (self.dpo or Dpo()).hyperparameters
        return (self.supervised or Supervised()).hyperparameters

    def as_body(self, hyperparameters: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON of the API, with `hyperparameters` instead of the requested ones when they are resolved."""
        values = self.hyperparameters.model_dump() if hyperparameters is None else hyperparameters
        return {"type": self.type, self.type: {"hyperparameters": values}}


class LoraKnobs(Frozen):
    """The adapter's shape. Patterns map a suffix of a module's name to its own rank or alpha."""

    rank: Annotated[int | Auto, _integer(1, 512)] = Field(default="auto", description="auto: by the number of examples")
    alpha: Annotated[float | Auto, _number(lambda x: x > 0, _POSITIVE)] = Field(default="auto", description="auto: 32")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear", description="name endings such as q_proj; all-linear leaves out lm_head and embeddings"
    )
    rslora: Switch = Field(default=False, description="scale by alpha / sqrt(rank) instead of alpha / rank")
    dropout: Fraction = Field(default=0.0, description="0 is off")
    rank_pattern: dict[str, Rank] = Field(default_factory=dict)
    alpha_pattern: dict[str, Alpha] = Field(default_factory=dict)

    @field_validator("target_modules", mode="before")
    @classmethod
    def _known_form(cls, value: Any) -> Any:
        names = list(value) if isinstance(value, list | tuple) else []
        if value == "all-linear" or (names and all(isinstance(name, str) and name for name in names)):
            return value
        raise ValueError('must be "all-linear" or a list of module names')


class ScheduleKnobs(Frozen):
    type: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: Fraction = Field(default=0.05, description="part of all steps; 0 is off")
    final_ratio: Fraction = Field(default=0.1, description="last rate as a part of the highest one")


class EarlyStopping(Frozen):
    """Ends the job when `full_valid_loss` has not fallen by `min_delta` for `patience` epochs."""

    patience: Annotated[int, _integer(1, 50, auto=False)] = 2
    min_delta: Annotated[float, _number(lambda x: x >= 0, "a number of 0 or more", auto=False)] = 0.0


class Sweep(Frozen):
    """Trains one adapter for each combination and publishes the one with the lowest validation loss."""

    learning_rate_multiplier: tuple[Annotated[float, _number(lambda x: x > 0, _POSITIVE, auto=False)], ...] = ()
    rank: tuple[Rank, ...] = ()

    @model_validator(mode="after")
    def _small(self) -> Sweep:
        if not 2 <= self.num_runs <= 8:
            raise ValueError(f"must name 2 to 8 combinations; this one names {self.num_runs}")
        return self

    @property
    def num_runs(self) -> int:
        return max(1, len(self.learning_rate_multiplier)) * max(1, len(self.rank))


class MlflowKnobs(Frozen):
    """A run in MLflow, on the server that the trainer's environment names. Needs the extra `mlflow` there."""

    experiment: str = Field(min_length=1, max_length=256)
    run_name: str | None = Field(default=None, max_length=256, description="None: the job's id")
    tags: dict[str, str] = Field(default_factory=dict)


class Knobs(Frozen):
    """TuneDock's part of a job. Everything has a default that suits most jobs."""

    adapter: str | None = Field(default=None, description="adapter to publish to; None: the suffix, else ft-<job>")
    promote: Literal["first", "never", "if_better"] = Field(
        default="first", description="when `production` moves to the new version by itself"
    )
    lora: LoraKnobs = LoraKnobs()
    schedule: ScheduleKnobs = ScheduleKnobs()
    weight_decay: Annotated[float, _number(lambda x: x >= 0, "a number of 0 or more", auto=False)] = 0.0
    max_grad_norm: Annotated[float, _number(lambda x: x >= 0, "a number of 0 or more", auto=False)] = Field(
        default=1.0, description="0 is off"
    )
    early_stopping: EarlyStopping | None = Field(default=EarlyStopping(), description="null or false is off")
    packing: Annotated[Auto | bool, _one_of((bool,), "true or false", auto=True)] = Field(
        default="auto", description="several examples in one row, kept apart"
    )
    max_length: Annotated[int | Auto, _integer(16, 1 << 20)] = Field(
        default="auto", description="tokens of one example; auto: what the engine serves"
    )
    overlong: Literal["error", "drop", "truncate"] = Field(default="error", description="longer than max_length")
    validation_split: Annotated[float | Auto, _number(lambda x: 0 <= x <= 0.5, "a number from 0 to 0.5")] = Field(
        default="auto", description="part of the training file when no validation_file is given; 0 is off"
    )
    mixing: dict[str, Annotated[float, _number(lambda x: x > 0, _POSITIVE, auto=False)]] = Field(
        default_factory=dict,
        description="further training files and their weights: 0.5 shows half of the file in an epoch, 2 all of it "
        "twice; the training_file has weight 1 unless it is named here",
    )
    init_from: str | None = Field(default=None, description="version to continue from, such as support@7")
    sweep: Sweep | None = None
    chat_template_kwargs: dict[str, TemplateValue] = Field(
        default_factory=dict, description="used in training and, through the version's profile, in serving"
    )
    mlflow: MlflowKnobs | None = Field(default=None, description="also send the numbers of each step to MLflow")
    num_samples: Annotated[int, _integer(0, 16, auto=False)] = Field(
        default=2, description="answers to held-out prompts in the events of each checkpoint; 0 is off"
    )

    @field_validator("adapter")
    @classmethod
    def _legal_name(cls, value: str | None) -> str | None:
        if value is not None and not is_name(value):
            raise ValueError("must be 1 to 63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit")
        return value

    @field_validator("init_from")
    @classmethod
    def _legal_reference(cls, value: str | None) -> str | None:
        if value is not None and parse_ref(value) is None:
            raise ValueError(f"must be a version such as support@7, not {value[:80]!r}")
        return value

    @field_validator("chat_template_kwargs")
    @classmethod
    def _no_other_arguments(cls, value: dict[str, Any]) -> dict[str, Any]:
        ours = sorted(value.keys() & NOT_TEMPLATE_KWARGS)
        if ours:
            raise ValueError(f"cannot set {ours[0]!r}: it belongs to rendering itself")
        return value

    @field_validator("early_stopping", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return {True: {}, False: None}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _sweep_sets_the_rank(self) -> Knobs:
        if self.sweep and self.sweep.rank and self.lora.rank != "auto":
            raise ValueError("gives ranks in both 'sweep.rank' and 'lora.rank': keep one")
        return self


def parse_knobs(value: Any, path: str = KNOBS_KEY) -> Knobs:
    """Raises BadInput whose `param` is the dotted path of the first bad field. None means all defaults."""
    return _parse(Knobs, {} if value is None else value, path)


def parse_method(value: Any, deprecated: Any = None, path: str = "method") -> Method:
    """`method`, or the deprecated top-level `hyperparameters` of older clients; both only when they agree.

    Raises BadInput with the dotted path.
    """
    method = _parse(Method, {} if value is None else value, path)
    if deprecated is None:
        return method
    old = _parse(SupervisedHyperparameters, deprecated, "hyperparameters")
    if value is None:
        return Method(supervised=Supervised(hyperparameters=old))
    for name, asked in old.model_dump(exclude_unset=True).items():
        if method.type != "supervised" or getattr(method.hyperparameters, name) != asked:
            raise BadInput(
                f"hyperparameters.{name} contradicts 'method': give hyperparameters in 'method' only.",
                param=f"hyperparameters.{name}",
            )
    return method


def _parse(model: type[_Model], value: Any, path: str) -> _Model:
    if not isinstance(value, dict):
        raise BadInput(f"'{path}' must be an object.", param=path)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = [_explain(problem, value, path) for problem in error.errors(include_url=False)]
        where, text = problems[0]
        more = [{"param": p, "message": t} for p, t in problems[1:]]
        raise BadInput(text, param=where, details={"more": more} if more else {}) from error


def _explain(problem: Any, value: Any, path: str) -> tuple[str, str]:
    where = ".".join([path, *_place(problem["loc"], value)])
    if problem["type"] == "extra_forbidden":
        return where, f"Unknown field '{where}': check its spelling."
    if problem["type"] == "value_error":
        return where, f"'{where}' {problem['ctx']['error']}."
    return where, f"'{where}': {problem['msg'][:1].lower()}{problem['msg'][1:]}."


def _place(location: tuple[str | int, ...], value: Any) -> list[str]:
    """The parts of a pydantic location that are keys of the input; the others name branches of a union."""
    place = []
    for part in location:
        in_object = isinstance(value, dict) and part in value
        in_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if in_object or in_list:
            value = value[part]
            place.append(str(part))
    return place
