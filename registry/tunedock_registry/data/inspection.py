"""A full report for one file and one base model: reads the folder, never the weights. No torch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunedock_api.errors import BadInput

from ..models.facts import BaseFacts, base_facts
from ..models.tokenizer import load_tokenizer, stop_token_ids
from .estimate import BaseSize, cpu_tokens_per_s
from .hyperparameters import DataFacts
from .knobs import KNOBS_KEY, Knobs, Method, parse_knobs, parse_method
from .render import Renderer, Tokenizer
from .report import DataReport, Plan, build_report


@dataclass(frozen=True)
class Inspection:
    """What to look at. `method` and `knobs` as in the API; `max_length` None: the model's; speeds in tokens a second.

    `max_rank` is the engine's cap. Plain values only: it travels as JSON.
    """

    training: str
    validation: str | None = None
    max_length: int | None = None
    method: dict[str, Any] | None = None
    knobs: dict[str, Any] | None = None
    max_rank: int = 64
    tokens_per_s: float | None = None
    num_masks: int = 3


class Inspector:
    """Keeps one model's tokenizer between files."""

    def __init__(self, model: Path | None) -> None:
        """Without a model the parts of the report that need a tokenizer stay empty."""
        self._model = model
        self._tokenizer: Tokenizer | None = None

    def inspect(self, asked: Inspection) -> DataReport:
        """Raises BadInput for settings or a model that cannot be used; errors of the data stand in the report."""
        method, knobs = parse_method(asked.method), parse_knobs(asked.knobs)
        facts = base_facts(self._model, "base", asked.max_rank) if self._model is not None else None
        limit = asked.max_length or (facts.max_model_len if facts else None)
        with ExitStack() as files:
            training = files.enter_context(open(asked.training, "rb"))
            validation = files.enter_context(open(asked.validation, "rb")) if asked.validation else None
            return build_report(
                training,
                validation,
                self._renderer(knobs.chat_template_kwargs),
                limit,
                self._plan(facts, method, knobs, asked) if facts else None,
                asked.num_masks,
            )

    def _renderer(self, template_kwargs: Mapping[str, Any]) -> Renderer | None:
        if self._model is None:
            return None
        self._tokenizer = self._tokenizer or load_tokenizer(self._model)
        renderer = Renderer(self._tokenizer, template_kwargs, stop_token_ids(self._model))
        _check_read(renderer)
        return renderer

    def _plan(self, facts: BaseFacts, method: Method, knobs: Knobs, asked: Inspection) -> Plan:
        size = BaseSize(facts.modules, facts.vocab_size, facts.hidden_size)
        family = _model_type(self._model) if self._model else ""
        data = DataFacts(0, facts.hidden_size, family, asked.max_rank)
        return Plan(method, knobs, data, size, asked.tokens_per_s or _guessed_speed(size))


def _check_read(renderer: Renderer) -> None:
    """A misspelt name would change nothing, in training and in serving alike. Raises BadInput with the field."""
    for name in renderer.unread_kwargs():
        raise BadInput(
            f"The model's chat template does not read {name[:80]!r}: check its spelling, or leave it out.",
            param=f"{KNOBS_KEY}.chat_template_kwargs.{name[:80]}",
        )


def _model_type(model: Path) -> str:
    return str(json.loads((model / "config.json").read_bytes()).get("model_type", ""))


def _guessed_speed(size: BaseSize) -> float | None:
    """None on a machine with a GPU: there it depends on the card."""
    if shutil.which("nvidia-smi"):
        return None
    return cpu_tokens_per_s(size, len(os.sched_getaffinity(0)))
