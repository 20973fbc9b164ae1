"""Everything worth knowing about a training file before it costs anything: `GET /v1/files/{id}/report`, `data check`."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, BinaryIO

from .checks import Findings
from .duplicates import DuplicateIndex, Match
from .estimate import BaseSize, memory_bytes, train_seconds
from .examples import CompletionExample, Example
from .formats import MAX_LISTED, FileReport, Tally, scan
from .hyperparameters import DataFacts, Resolved, resolve
from .knobs import Knobs, Method
from .lines import LineError
from .render import Rendered, Renderer, RenderError
from .tool_schemas import tool_schema_errors

_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Plan:
    """The job that the estimate is for. `tokens_per_s` is what the trainer was last measured at; None: unknown."""

    method: Method
    knobs: Knobs
    facts: DataFacts
    base: BaseSize
    tokens_per_s: float | None = None
    tokens_per_pass: int = 2048


@dataclass(frozen=True)
class Repeats:
    """Counts are complete, listings capped. Each pair is (line, line it repeats, similarity)."""

    exact: int = 0
    near: int = 0
    pairs: tuple[tuple[int, int, float], ...] = ()


@dataclass(frozen=True)
class TokenStats:
    """Of sequences as they are trained: an example may give several. `histogram` maps an upper bound to a count."""

    sequences: int
    total: int
    trained: int
    longest: int
    percentiles: dict[str, int]
    histogram: dict[str, int]


@dataclass(frozen=True)
class Truncation:
    """Sequences longer than `max_length`; `lines` lists the first of them."""

    max_length: int
    count: int
    lines: tuple[int, ...]


@dataclass(frozen=True)
class MaskToken:
    id: int
    text: str
    trained: bool


@dataclass(frozen=True)
class MaskView:
    """One trained sequence of the example on `line`."""

    line: int
    tokens: tuple[MaskToken, ...]


@dataclass(frozen=True)
class Estimate:
    """`seconds` is None when nothing is known about the trainer's speed."""

    n_epochs: int
    batch_size: int
    learning_rate: float
    rank: int
    steps: int
    trained_tokens: int
    seconds: float | None
    memory_bytes: int


@dataclass(frozen=True)
class TemplateErrors:
    """Examples that the chat template refuses, with the template kwargs that were tried. The count is complete."""

    count: int
    errors: tuple[LineError, ...]


@dataclass(frozen=True)
class DataReport:
    """Parts that need a tokenizer or a plan are None without one."""

    file: FileReport
    duplicates: Repeats
    contradicting_prompts: int
    overlap: Repeats | None = None
    tokens: TokenStats | None = None
    truncation: Truncation | None = None
    template: TemplateErrors | None = None
    masks: tuple[MaskView, ...] = ()
    estimate: Estimate | None = None

    @property
    def ok(self) -> bool:
        """The file is well formed, and the template takes all of it."""
        return self.file.ok and not (self.template and self.template.count)

    def as_dict(self) -> dict[str, Any]:
        """The file's own report at the top level, the other parts beside it."""
        names = ("duplicates", "overlap", "tokens", "truncation", "template", "estimate")
        parts = {name: getattr(self, name) for name in names}
        return {
            **self.file.as_dict(),
            "contradicting_prompts": self.contradicting_prompts,
            **{name: None if part is None else asdict(part) for name, part in parts.items()},
            "masks": [asdict(mask) for mask in self.masks],
        }


def build_report(
    training: BinaryIO,
    validation: BinaryIO | None = None,
    renderer: Renderer | None = None,
    max_length: int | None = None,
    plan: Plan | None = None,
    num_masks: int = 3,
) -> DataReport:
    """Reads both streams once. With a `renderer` every example is rendered.

    `max_length` is in tokens; None counts no truncation. The good lines of a bad file are still looked at.
    """
    tally, tokens = Tally(), _Tokens(renderer, max_length, num_masks)
    lines = array("q")
    index = DuplicateIndex(_examples(training, tally, tokens, lines))
    return DataReport(
        file=tally.report(),
        duplicates=_repeats(zip(lines, index.matches, strict=True), lines),
        contradicting_prompts=index.contradictions,
        overlap=None if validation is None else _overlap(validation, index, lines),
        tokens=tokens.stats(),
        truncation=tokens.truncation(),
        template=tokens.template(),
        masks=tuple(tokens.masks),
        estimate=_estimate(plan, len(lines), tokens) if plan is not None and lines else None,
    )


def _examples(stream: BinaryIO, tally: Tally, tokens: _Tokens, lines: array[int]) -> Iterator[Example]:
    """Yields the good examples and notes their lines: no example is kept."""
    for scanned in scan(stream):
        example = scanned.example
        if example is not None:
            tokens.add(example)
            found = (*scanned.warnings, *tool_schema_errors(example), *_style(example))
            scanned = replace(scanned, warnings=found)
        tally.add(scanned)
        if example is not None:
            lines.append(example.line)
            yield example


def _style(example: Example) -> list[LineError]:
    """Habits that cost quality in prompt/completion data."""
    found = Findings(example.line)
    if (
        isinstance(example, CompletionExample)
        and example.prompt[-1:].isspace()
        and not example.completion[:1].isspace()
    ):
        text = "ends its prompt with white space: move it to the start of the completion, where tokens have it."
        found.warn("prompt", "prompt_ends_with_space", text)
    return found.warnings


def _repeats(matches: Iterable[tuple[int, Match | None]], lines: Sequence[int]) -> Repeats:
    """`matches` pairs a line with what its example repeats; `lines` are those of the remembered examples."""
    found = [(line, match) for line, match in matches if match is not None]
    pairs = tuple((line, lines[match.of], match.similarity) for line, match in found[:MAX_LISTED])
    exact = sum(match.kind == "exact" for _, match in found)
    return Repeats(exact, len(found) - exact, pairs)


def _overlap(validation: BinaryIO, index: DuplicateIndex, lines: Sequence[int]) -> Repeats:
    held = (scanned.example for scanned in scan(validation))
    return _repeats(((example.line, index.find(example)) for example in held if example is not None), lines)


@dataclass
class _Tokens:
    """Collects the rendered lengths; nothing but lengths and the first masks is kept."""

    renderer: Renderer | None
    max_length: int | None
    num_masks: int
    masks: list[MaskView] = field(default_factory=list)
    lengths: array[int] = field(default_factory=lambda: array("q"))
    trained: int = 0
    too_long: list[int] = field(default_factory=list)
    refused: list[LineError] = field(default_factory=list)
    num_refused: int = 0
    _shown: set[int] = field(default_factory=set)

    def add(self, example: Example) -> None:
        if self.renderer is None:
            return
        try:
            sequences = self.renderer.render_any(example)
        except RenderError as error:
            self.num_refused += 1
            if len(self.refused) < MAX_LISTED:
                self.refused.append(LineError(example.line, "", str(error.details["check"]), error.message))
            return
        for rendered in sequences:
            self._count(example.line, rendered, self.renderer)

    def _count(self, line: int, rendered: Rendered, renderer: Renderer) -> None:
        self.lengths.append(len(rendered.token_ids))
        self.trained += rendered.num_trained
        if self.max_length is not None and len(rendered.token_ids) > self.max_length:
            self.too_long.append(line)
        if line in self._shown or len(self._shown) < self.num_masks:
            self._shown.add(line)
            self.masks.append(_mask(line, rendered, renderer))

    def stats(self) -> TokenStats | None:
        if not self.lengths:
            return None
        ordered = sorted(self.lengths)
        return TokenStats(
            sequences=len(ordered),
            total=sum(ordered),
            trained=self.trained,
            longest=ordered[-1],
            percentiles={f"p{p}": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in _PERCENTILES},
            histogram=_histogram(ordered),
        )

    def template(self) -> TemplateErrors | None:
        return TemplateErrors(self.num_refused, tuple(self.refused)) if self.renderer else None

    def truncation(self) -> Truncation | None:
        if self.renderer is None or self.max_length is None:
            return None
        return Truncation(self.max_length, len(self.too_long), tuple(self.too_long[:MAX_LISTED]))


def _mask(line: int, rendered: Rendered, renderer: Renderer) -> MaskView:
    pairs = zip(rendered.token_ids, rendered.weights, strict=True)
    return MaskView(line, tuple(MaskToken(token, renderer.text_of(token), weight > 0) for token, weight in pairs))


def _histogram(ordered: Sequence[int]) -> dict[str, int]:
    """Buckets that double: up to 16 tokens, 32, 64 …; empty ones in between are kept."""
    counts: dict[str, int] = {}
    bound, seen = 16, 0
    while seen < len(ordered):
        inside = bisect_right(ordered, bound)
        if inside:
            counts[str(bound)] = inside - seen
        seen, bound = inside, bound * 2
    return counts


def _estimate(plan: Plan, num_examples: int, tokens: _Tokens) -> Estimate:
    resolved: Resolved = resolve(plan.method, plan.knobs, replace(plan.facts, num_examples=num_examples))
    total = sum(tokens.lengths)
    return Estimate(
        n_epochs=resolved.n_epochs,
        batch_size=resolved.batch_size,
        learning_rate=resolved.learning_rate,
        rank=resolved.rank,
        steps=resolved.total_steps,
        trained_tokens=tokens.trained * resolved.n_epochs,
        seconds=train_seconds(total, resolved.n_epochs, plan.tokens_per_s) if total and plan.tokens_per_s else None,
        memory_bytes=memory_bytes(plan.base, resolved.rank, _tokens_of_a_pass(plan, resolved, tokens.lengths)),
    )


def _tokens_of_a_pass(plan: Plan, resolved: Resolved, lengths: Sequence[int]) -> int:
    """A batch, cut into passes of `tokens_per_pass`; the longest example goes alone if it must."""
    if not lengths:
        return plan.tokens_per_pass
    batch = resolved.batch_size * sum(lengths) // len(lengths)
    return max(max(lengths), min(plan.tokens_per_pass, batch))
