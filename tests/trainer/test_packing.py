"""Examples that share a row do not see each other."""

from __future__ import annotations

import pytest
import torch
from support.training import busy_adapter, config, gradients, items, tiny_base, tokens, trainee
from torch import Tensor
from tunedock_trainer.base import Base
from tunedock_trainer.rows import Segment, Tokens, build_pass

LENGTHS = (5, 9, 9, 14, 31, 40, 7)


def hidden(base: Base, examples: list[Tokens], packing: bool) -> list[Tensor]:
    rows = base.new_pass(examples, packing=packing)
    with torch.no_grad(), base.running(rows, [busy_adapter()]):
        flat = base.hidden(rows)
    if packing:
        return list(torch.split(flat[-rows.num_tokens :], list(rows.lengths)))
    grid = flat.view(len(examples), -1, flat.shape[-1])
    return [row[: len(example)] for row, example in zip(grid, examples, strict=True)]


def test_logits_of_each_packed_example_equal_those_of_the_example_alone() -> None:
    base = tiny_base()
    examples = [tokens(length, length) for length in LENGTHS]
    weight = base.head.weight_VD
    for number, together in enumerate(hidden(base, examples, packing=True)):
        alone = hidden(base, [examples[number]], packing=True)[0]
        padded = hidden(base, examples, packing=False)[number]
        assert torch.allclose(together @ weight.T, alone @ weight.T, atol=1e-4)
        assert torch.allclose(together @ weight.T, padded @ weight.T, atol=1e-4)


def test_changing_one_example_leaves_its_neighbours_bit_for_bit() -> None:
    base = tiny_base()
    before = hidden(base, [tokens(12, 1), tokens(12, 2), tokens(12, 3)], packing=True)
    after = hidden(base, [tokens(12, 1), tokens(12, 99), tokens(12, 3)], packing=True)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])
    assert not torch.equal(before[1], after[1])


def test_gradients_do_not_depend_on_the_layout() -> None:
    data = items(9)
    packed = trainee(config(batch_size=9), data)
    padded = trainee(config(batch_size=9, packing=False), data)
    gradients(packed, data)
    gradients(padded, data)
    assert torch.allclose(packed.adapter.grads, padded.adapter.grads, atol=1e-5)


def test_passes_of_a_batch_add_up_to_the_batch() -> None:
    data = items(12)
    whole, cut = trainee(config(batch_size=12), data), trainee(config(batch_size=12, max_tokens=20), data)
    one, many = gradients(whole, data), gradients(cut, data)
    assert abs(one.loss - many.loss) < 1e-5
    assert (one.num_labels, one.num_tokens) == (many.num_labels, many.num_tokens)
    assert torch.allclose(whole.adapter.grads, cut.adapter.grads, atol=1e-6)


def test_loss_weights_scale_the_loss_of_their_tokens() -> None:
    base, example = tiny_base(), tokens(10, 4, labels=4)
    double = Tokens(example.token_ids, tuple(2 * weight for weight in example.weights))
    rows = build_pass([example, double])
    assert rows.labels.weights_M.tolist() == [1.0] * 4 + [2.0] * 4
    with torch.no_grad(), base.running(rows):
        scores = base.scores(rows).logprobs_M
    assert torch.allclose(scores[:4], scores[4:], atol=1e-5)


def test_attention_grids_hold_examples_of_similar_length() -> None:
    rows = build_pass([tokens(length, 1) for length in sorted([20, 21, 22, 400, 410])])
    # 873 tokens become 896: an example of 23 tokens that is nobody's stands with the short ones.
    assert [gather.num_rows for gather in rows.gathers] == [4, 2]
    assert rows.gathers[-1].end == rows.input_ids.shape[1] == 896
    assert all(gather.length % 8 == 0 for gather in rows.gathers)


@pytest.mark.parametrize("length", [8, 9, 100, 106, 860, 2048, 3001])
def test_rows_have_few_sizes_at_the_cost_of_few_tokens(length: int) -> None:
    rows = build_pass([tokens(length, 1)])
    assert rows.num_tokens == length
    size = rows.input_ids.shape[1]
    assert size % 8 == 0
    assert length <= size <= max(length + 7, 1.07 * length)
    assert rows.segments == (Segment(0, 0, size),)
