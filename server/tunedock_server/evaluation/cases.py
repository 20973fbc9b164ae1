"""What a version is measured on: the examples that its job held back, as token rows, prompts and references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunedock_registry.data.examples import ChatExample, CompletionExample, Example, message_weight
from tunedock_registry.data.formats import read_examples
from tunedock_registry.data.knobs import parse_knobs
from tunedock_registry.data.render import Renderer
from tunedock_registry.data.split import held_out
from tunedock_registry.records import JobRecord
from tunedock_registry.registry import Registry

# Text that has nothing to do with anybody's domain: what tuning should not make the model worse at.
GENERAL_TEXTS = (
    "The ferry leaves the island every morning at eight and returns in the evening, unless the wind is too strong.",
    "Plants take in carbon dioxide and water and, with the energy of sunlight, make sugar and oxygen from them.",
    "She closed the book, looked out of the window for a while, and then began to write a letter to her brother.",
    "To boil an egg, put it into hot water for six to ten minutes, then hold it under cold water before peeling it.",
    "In the parliament the members debated the new law for three days before they voted on it by show of hands.",
    "The square of the longest side of a right triangle equals the sum of the squares of the other two sides.",
)


@dataclass(frozen=True)
class Row:
    """`weights[t]` counts the prediction of `token_ids[t]`."""

    token_ids: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def weight(self) -> float:
        return sum(self.weights[1:])


@dataclass(frozen=True)
class Case:
    """One held-out example. `other` is the answer that was not preferred; `reference` None means that text is not compared."""

    row: Row
    other: Row | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    tools: tuple[dict[str, Any], ...] = ()
    prompt: str | None = None
    reference: str | None = None
    max_tokens: int = 0


def cases_of(registry: Registry, job: JobRecord, renderer: Renderer, limit: int, max_tokens: int) -> list[Case]:
    """At most `limit` of the job's held-out examples, evenly over all; those longer than `max_tokens` are left out."""
    knobs = parse_knobs(job.knobs)
    if job.validation_file:
        examples = _read(registry, job, job.validation_file)
    else:
        examples = held_out(_read(registry, job, job.training_file), knobs.validation_split, job.seed)[1]
    step = max(1, len(examples) // limit)
    cases = [_case(example, renderer) for example in examples[::step][:limit]]
    return [case for case in cases if len(case.row.token_ids) + case.max_tokens <= max_tokens]


def general_rows(renderer: Renderer) -> list[Row]:
    rows = (renderer.render(CompletionExample(0, text[:1], text[1:]))[0] for text in GENERAL_TEXTS)
    return [Row(tuple(row.token_ids), tuple(row.weights)) for row in rows]


def _read(registry: Registry, job: JobRecord, file_id: str) -> list[Example]:
    with registry.files.open(job.project, file_id) as stream:
        return list(read_examples(stream))


def _case(example: Example, renderer: Renderer) -> Case:
    rows = [Row(tuple(one.token_ids), tuple(one.weights)) for one in renderer.render_any(example)]
    if isinstance(example, CompletionExample):
        return Case(rows[0], prompt=example.prompt, reference=example.completion, max_tokens=_room(rows[0]))
    if isinstance(example, ChatExample):
        return _chat_case(example, rows)
    return Case(rows[0], other=rows[1])


def _chat_case(example: ChatExample, rows: Sequence[Row]) -> Case:
    """Compares text where the last message is a trained plain answer."""
    last = example.messages[-1]
    row = rows[-1]
    if not message_weight(last) or not isinstance(last.get("content"), str) or last.get("tool_calls"):
        return Case(row)
    return Case(row, None, example.messages[:-1], example.tools, None, last["content"], _room(row))


def _room(row: Row) -> int:
    """Tokens that an answer may take: twice the reference and a little."""
    return 2 * sum(weight > 0 for weight in row.weights) + 8
