"""Our grouped LoRA is PEFT's LoRA: same outputs, same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from support.training import busy_adapter, config, items, step, tiny_base, tiny_path, tokens, trainee
from torch import Tensor
from transformers import AutoModelForCausalLM
from tunedock_trainer.adapter import Adapter
from tunedock_trainer.head import Head, score
from tunedock_trainer.linear import Active
from tunedock_trainer.rows import Segment, build_pass
from tunedock_trainer.settings import LoraConfig


def peft_twin(adapter: Adapter, rank: int = 4) -> Any:
    """The same base and the same weights in PEFT's hands."""
    model = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    targets = sorted({name.rpartition(".")[2] for name in adapter.modules})
    twin = get_peft_model(model, PeftConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, (a, b) in adapter.tensors().items():
            module = twin.base_model.model.get_submodule(name)
            module.lora_A["default"].weight.copy_(a)
            module.lora_B["default"].weight.copy_(b)
    return twin


def our_loss(adapter: Adapter, count: int = 5) -> Tensor:
    base = tiny_base()
    rows = build_pass([item.sequences[0] for item in items(count)])
    with base.running(rows, [adapter]):
        loss = -base.scores(rows).logprobs_M.sum()
        torch.autograd.backward(loss)
    return loss.detach()


def test_loss_and_gradients_equal_those_of_peft() -> None:
    adapter = busy_adapter()
    adapter.grads.zero_()
    ours = our_loss(adapter)
    twin = peft_twin(adapter)
    theirs = torch.zeros(())
    for item in items(5):
        sequence = item.sequences[0]
        ids = torch.tensor([sequence.token_ids])
        labels = torch.where(torch.tensor([sequence.weights]) > 0, ids, -100)
        theirs = theirs + twin(input_ids=ids, labels=labels).loss * sequence.num_labels
    torch.autograd.backward(theirs)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    for name, module in adapter.modules.items():
        peft = twin.base_model.model.get_submodule(name)
        a, b = adapter.gradients()[name]
        assert torch.allclose(a, peft.lora_A["default"].weight.grad, atol=1e-4, rtol=1e-3), name
        assert torch.allclose(b, peft.lora_B["default"].weight.grad, atol=1e-4, rtol=1e-3), name
        assert module.scaling == 2.0


def test_rows_of_different_adapters_share_a_pass() -> None:
    base, first, second = tiny_base(), busy_adapter(1), busy_adapter(2)
    examples = [tokens(9, 1), tokens(7, 2), tokens(8, 3)]
    rows = build_pass(examples, adapters=[0, 0, 1])
    for adapter in (first, second):
        adapter.grads.zero_()
    with base.running(rows, [first, second]):
        together = base.scores(rows).logprobs_M
        torch.autograd.backward(-together.sum())
    mixed = first.grads.clone(), second.grads.clone()
    for adapter, group, grads, span in (
        (first, examples[:2], mixed[0], slice(0, 7)),
        (second, examples[2:], mixed[1], slice(7, 11)),
    ):
        adapter.grads.zero_()
        alone = build_pass(group)
        with base.running(alone, [adapter]):
            scores = base.scores(alone).logprobs_M
            torch.autograd.backward(-scores.sum())
        assert torch.allclose(together[span], scores, atol=1e-5)
        assert torch.allclose(grads, adapter.grads, atol=1e-5)


def test_without_segments_the_base_answers() -> None:
    base, adapter = tiny_base(), busy_adapter()
    rows = build_pass([tokens(8, 1)])
    with torch.no_grad():
        with base.running(rows):
            plain = base.scores(rows).logprobs_M
        with base.running(rows, [adapter]):
            tuned = base.scores(rows).logprobs_M
    model = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    ids = rows.input_ids
    expected = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[-4:, 0]
    assert torch.allclose(plain, expected, atol=1e-5)
    assert not torch.allclose(plain, tuned, atol=1e-3)


def test_modules_that_are_no_target_stay_untouched() -> None:
    run = config(lora=LoraConfig(rank=4, alpha=8, target_modules=("q_proj", "down_proj")))
    one = trainee(run, items(8))
    before = one.evaluate(items(8)).loss
    for _ in range(2):
        step(one)
    assert {name.rpartition(".")[2] for name in one.adapter.modules} == {"q_proj", "down_proj"}
    assert one.evaluate(items(8)).loss < before


def test_dropout_acts_in_training_only_and_follows_the_seed() -> None:
    run = config(lora=LoraConfig(rank=4, alpha=8, dropout=0.5))
    one, two = trainee(run, items(8)), trainee(run, items(8))
    for each in (one, two):
        step(each)
        step(each)
    assert torch.equal(one.adapter.params, two.adapter.params)
    assert one.evaluate(items(4)).loss == one.evaluate(items(4)).loss
    plain = trainee(config(), items(8))
    step(plain)
    step(plain)
    assert not torch.equal(one.adapter.params, plain.adapter.params)


def test_scores_equal_a_full_softmax() -> None:
    base = tiny_base()
    hidden = torch.randn(11, base.facts.hidden_size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(11) * 7
    expected = (hidden @ base.head.weight_VD.T).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    torch.autograd.backward(expected.sum())
    twin = hidden.detach().clone().requires_grad_()
    scored = score(twin, labels, base.head)
    torch.autograd.backward(scored.logprobs_M.sum())
    assert torch.allclose(scored.logprobs_M, expected, atol=1e-5)
    assert hidden.grad is not None
    assert twin.grad is not None
    assert torch.allclose(twin.grad, hidden.grad, atol=1e-5)


def test_an_adapter_over_all_rows_serves_generation() -> None:
    base, adapter = tiny_base(), busy_adapter()
    ids = torch.tensor([tokens(9, 1).token_ids])
    with torch.no_grad(), base.lora.use(Active([adapter], [Segment(0, 0, 1 << 40)])):
        ours = base.model(input_ids=ids, use_cache=False).logits
    assert torch.allclose(ours, peft_twin(adapter)(input_ids=ids).logits, atol=1e-4)


@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.25, None), (2.0, 3.0)])
def test_scores_of_several_chunks_equal_a_full_softmax(scale: float, cap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(1 << 18, 3, generator=generator), None, scale, cap)
    assert head.rows_per_chunk == 16
    hidden = torch.randn(40, 3, generator=generator).requires_grad_()
    labels, weights = torch.arange(40) * 1000, torch.arange(40.0)
    logits = hidden @ head.weight_VD.T * scale
    logits = logits if cap is None else torch.tanh(logits / cap) * cap
    expected = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    torch.autograd.backward((expected * weights).sum())
    twin = hidden.detach().clone().requires_grad_()
    scored = score(twin, labels, head)
    torch.autograd.backward((scored.logprobs_M * weights).sum())
    # Both add up a quarter of a million float32 terms, each in an order of its own.
    assert torch.allclose(scored.logprobs_M, expected, atol=1e-4)
    assert torch.equal(scored.top1_M, logits.argmax(-1))
    assert hidden.grad is not None
    assert twin.grad is not None
    assert torch.allclose(twin.grad, hidden.grad, atol=1e-3, rtol=1e-3)
