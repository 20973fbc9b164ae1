"""Token rows as one forward pass takes them: examples side by side without padding, or one example a row.

Shapes: N tokens of a pass, M labelled positions of a pass. Everything is an index tensor; nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Layout = Literal["packed", "padded"]
_WIDTH = 8
"""Attention grids are as wide as a multiple of this."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One tokenised conversation. `weights[i]` is the loss weight of predicting `token_ids[i]`; `weights[0]` is unused."""

    token_ids: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.weights) or len(self.token_ids) < 2:
            raise ValueError("an example needs at least two tokens, and one weight a token")

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_labels(self) -> int:
        return sum(weight > 0 for weight in self.weights[1:])

    @property
    def weight(self) -> float:
        """Sum of the loss weights: what the loss of a batch is normalised by."""
        return sum(self.weights[1:])


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows `start:end` of the flattened pass belong to adapter number `adapter`."""

    adapter: int
    start: int
    end: int


@dataclass(frozen=True)
class Labels:
    """What some examples have to learn: token `labels_M` with loss weight `weights_M`, in example `examples_M` (from 0).

    `lengths` are the examples' token counts.
    """

    labels_M: Tensor
    weights_M: Tensor
    examples_M: Tensor
    lengths: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    `input_ids` and `position_ids` have the shape [1, N] when packed, [B, L] (padded right) otherwise. A packed row may begin
    with an example that is nobody's: without labels, not counted in `lengths`. `label_rows_M` are
    the flattened positions whose next token is learned. `segments` cover all rows.
    """

    layout: Layout
    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    label_rows_M: Tensor
    labels: Labels
    segments: tuple[Segment, ...]
    gathers: list[Gather] = field(default_factory=list)

    @property
    def lengths(self) -> tuple[int, ...]:
        return self.labels.lengths

    @property
    def num_tokens(self) -> int:
        return self.labels.num_tokens


@dataclass(frozen=True, slots=True)
class Gather:
    """Examples of similar length, for attention: `index_BL` maps a padded grid into the packed row, `rows` back.

    `index_BL` [B·L] repeats the last token of an example in its padding, which causal attention never lets a real token
    see; `rows` [n] are the grid cells of the real tokens, in packed order, which are packed rows `start:end`.
    """

    num_rows: int
    length: int
    index_BL: Tensor
    rows: Tensor
    start: int
    end: int
    dense: bool


def build_pass(
    examples: Sequence[Tokens],
    *,
    layout: Layout = "packed",
    adapters: Sequence[int] | None = None,
    pad_id: int = 0,
    device: torch.device | str = "cpu",
) -> Pass:
    """Lays `examples` out in the given order. `adapters[i]` is the adapter of example i (all 0 when None); examples of
    one adapter must stand together."""
    lengths = [len(example) for example in examples]
    width = max(lengths) if layout == "padded" else 0
    fill = [] if width else _fill(sum(lengths))
    starts = _starts([*fill, *lengths], width)[len(fill) :]
    labelled = [_labelled(example, start) for example, start in zip(examples, starts, strict=True)]
    return Pass(
        layout=layout,
        input_ids=_grid([*([pad_id] * n for n in fill), *(one.token_ids for one in examples)], width, pad_id).to(
            device
        ),
        position_ids=_grid([range(length) for length in (*fill, *lengths)], width, 0).to(device),
        attention_mask=_grid([[1] * length for length in lengths], width, 0).to(device) if width else None,
        label_rows_M=_flat([rows for rows, _, _ in labelled], torch.long).to(device),
        labels=Labels(
            labels_M=_flat([labels for _, labels, _ in labelled], torch.long).to(device),
            weights_M=_flat([weights for _, _, weights in labelled], torch.float32).to(device),
            examples_M=_flat([[number] * len(item[0]) for number, item in enumerate(labelled)], torch.long).to(device),
            lengths=tuple(lengths),
        ),
        segments=_segments(adapters or [0] * len(lengths), starts, lengths, width, sum(fill)),
        gathers=[] if width else _gathers([*fill, *lengths], device),
    )


def _fill(num_tokens: int) -> list[int]:
    """The length of nobody's example, which rounds the row up, if there has to be one.

    torch's matmuls on CPU compile a kernel for each size and keep up to 1,024 of them, about a megabyte each: with a size of
    its own for each step, a process grew by a quarter in ten steps.
    """
    multiple = max(8, min(64, 1 << (num_tokens // 16).bit_length() - 1)) if num_tokens >= 16 else 8
    return [-num_tokens % multiple] if num_tokens % multiple else []


def _starts(lengths: Sequence[int], width: int) -> list[int]:
    if width:
        return [number * width for number in range(len(lengths))]
    starts = [0]
    for length in lengths[:-1]:
        starts.append(starts[-1] + length)
    return starts


def _labelled(example: Tokens, start: int) -> tuple[list[int], list[int], list[float]]:
    """Rows, labels and weights of the trained tokens; the row is that of the token before."""
    rows, labels, weights = [], [], []
    for position in range(1, len(example)):
        if example.weights[position] > 0:
            rows.append(start + position - 1)
            labels.append(example.token_ids[position])
            weights.append(example.weights[position])
    return rows, labels, weights


def _grid(values: Sequence[Sequence[int]], width: int, fill: int) -> Tensor:
    if not width:
        return _flat(values, torch.long)[None]
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in values])


def _flat(parts: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
    return torch.tensor([value for part in parts for value in part], dtype=dtype)


def _segments(
    adapters: Sequence[int], starts: Sequence[int], lengths: Sequence[int], width: int, fill: int
) -> tuple[Segment, ...]:
    """Nobody's `fill` rows count as the first adapter's, so that its matmuls have few sizes too; no gradient comes from
    them."""
    segments: list[Segment] = []
    for adapter, start, length in zip(adapters, starts, lengths, strict=True):
        end, start = start + (width or length), start if segments else start - fill
        if segments and segments[-1].adapter == adapter:
            segments[-1] = Segment(adapter, segments[-1].start, end)
        else:
            segments.append(Segment(adapter, start, end))
    return tuple(segments)


def _gathers(lengths: Sequence[int], device: torch.device | str) -> list[Gather]:
    """Cuts the row where the padding of a common grid would cost more than one more attention call."""
    starts = _starts(lengths, 0)
    groups: list[list[int]] = []
    for number, length in enumerate(lengths):
        if groups and _worth_joining([lengths[member] for member in groups[-1]], length):
            groups[-1].append(number)
        else:
            groups.append([number])
    return [_gather([lengths[n] for n in group], starts[group[0]], device) for group in groups]


def _worth_joining(group: Sequence[int], length: int) -> bool:
    """A grid costs the square of its longest row; up to a quarter of padding is cheaper than another small call."""
    width = max(*group, length)
    useful = sum(member**2 for member in group) + length**2
    return (len(group) + 1) * width**2 <= max(1.35 * useful, 20_000)


def _gather(lengths: Sequence[int], start: int, device: torch.device | str) -> Gather:
    width, end = -(-max(lengths) // _WIDTH) * _WIDTH, start + sum(lengths)
    index, rows, base = [], [], start
    for number, length in enumerate(lengths):
        index += [base + min(offset, length - 1) for offset in range(width)]
        rows += [number * width + offset for offset in range(length)]
        base += length
    return Gather(
        num_rows=len(lengths),
        length=width,
        index_BL=torch.tensor(index, device=device),
        rows=torch.tensor(rows, device=device),
        start=start,
        end=end,
        dense=set(lengths) == {width},
    )
