"""A report as lines of text, for people."""

from __future__ import annotations

from collections.abc import Iterator

from .report import DataReport, Estimate, MaskView, TokenStats

_BAR_WIDTH = 40


def summary(report: DataReport) -> Iterator[str]:
    """Everything but the listing of errors."""
    file = report.file
    verdict = "ok" if file.ok else f"{file.num_errors} errors on {file.num_bad_lines} lines"
    yield f"{verdict}, {file.num_examples} {file.kind or ''} examples"
    repeated, overlap = report.duplicates, report.overlap
    yield f"repeated: {repeated.exact} exactly, {repeated.near} nearly; {report.contradicting_prompts} prompts with several answers"
    if overlap is not None:
        yield f"also in the validation file: {overlap.exact} exactly, {overlap.near} nearly"
    if report.template is not None and report.template.count:
        yield f"refused by the chat template: {report.template.count}"
    if report.tokens is not None:
        yield from _tokens(report.tokens)
    if report.truncation is not None:
        yield f"longer than {report.truncation.max_length} tokens: {report.truncation.count}"
    if report.estimate is not None:
        yield _estimate(report.estimate)
    yield from (_mask(mask) for mask in report.masks)


def _tokens(stats: TokenStats) -> Iterator[str]:
    share = 100 * stats.trained / stats.total
    yield f"tokens: {stats.total} in all, {stats.trained} trained ({share:.0f} %), longest example {stats.longest}"
    highest = max(stats.histogram.values())
    for bound, count in stats.histogram.items():
        yield f"  up to {bound:>6} {'█' * round(_BAR_WIDTH * count / highest)} {count}"


def _estimate(estimate: Estimate) -> str:
    time = "" if estimate.seconds is None else f", about {_duration(estimate.seconds)}"
    memory = f"{estimate.memory_bytes / 2**30:.1f} GiB"
    return f"a job: {estimate.n_epochs} epochs, {estimate.steps} steps of {estimate.batch_size}{time}, about {memory}"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7_200
        else f"{seconds / 3_600:.1f} h"
    )


def _mask(mask: MaskView) -> str:
    """The example's text with what is trained between « and »."""
    text, inside = "", False
    for token in mask.tokens:
        if token.trained != inside:
            text += "«" if token.trained else "»"
            inside = token.trained
        text += token.text
    return f"line {mask.line}: {text}{'»' if inside else ''}"
