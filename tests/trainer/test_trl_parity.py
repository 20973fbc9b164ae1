"""The same batches through TRL give the same losses, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from support.models import copy_tokenizer
from support.training import config, items, step, tiny_path, tokens, trainee
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from tunedock_trainer.losses import Item
from tunedock_trainer.settings import OptimConfig, RunConfig
from tunedock_trainer.trainee import Trainee

STEPS = 20
OPTIM = OptimConfig(learning_rate=5e-3, schedule="constant", max_grad_norm=1.0)


def our_losses(one: Trainee) -> list[float]:
    return [step(one).tally.loss for _ in range(STEPS)]


def shown(one: Trainee) -> list[Item]:
    """All items in the order in which the steps take them."""
    return [item for step in range(STEPS) for item in one.sampler.batch(step)]


def peft_start(one: Trainee) -> PeftModel:
    """PEFT's adapter on the same base, with our first values."""
    model = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    targets = sorted({name.rpartition(".")[2] for name in one.adapter.modules})
    lora = one.config.lora
    peft = get_peft_model(
        model, PeftConfig(r=lora.rank, lora_alpha=int(lora.alpha), target_modules=targets, task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, (a, b) in one.adapter.tensors().items():
            module = peft.base_model.model.get_submodule(name)
            module.lora_A["default"].weight.copy_(a)
            module.lora_B["default"].weight.copy_(b)
    return peft


def arguments(run: RunConfig, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": run.batch_size,
        "learning_rate": run.optim.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": run.optim.max_grad_norm,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "max_length": None,
    }


def their_losses(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_supervised_losses_equal_those_of_trl(tmp_path: Path) -> None:
    run = config(batch_size=4, n_epochs=5, optim=OPTIM)
    one = trainee(run, items(16))
    sequences = [item.sequences[0] for item in shown(one)]
    rows = {
        "input_ids": [list(s.token_ids) for s in sequences],
        "labels": [[t if w else -100 for t, w in zip(s.token_ids, s.weights, strict=True)] for s in sequences],
    }
    trainer = SFTTrainer(
        model=peft_start(one),
        args=SFTConfig(**arguments(run, tmp_path)),
        train_dataset=Dataset.from_dict(rows),
        processing_class=AutoTokenizer.from_pretrained(copy_tokenizer(tmp_path / "tokenizer")),
    )
    theirs, ours = their_losses(trainer), our_losses(one)
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert ours[-1] < 0.97 * ours[0]


def pairs(count: int) -> list[Item]:
    """A common prompt of five tokens, then six preferred or four other ones."""
    made = []
    for number in range(count):
        prompt, good, bad = tokens(5, number, 0), tokens(6, 100 + number, 6), tokens(4, 200 + number, 4)
        made.append(
            Item(tuple(type(prompt)(prompt.token_ids + s.token_ids, prompt.weights + s.weights) for s in (good, bad)))
        )
    return made


def test_dpo_losses_equal_those_of_trl(tmp_path: Path) -> None:
    run = config(objective="dpo", beta=0.1, batch_size=4, n_epochs=5, optim=OPTIM)
    one = trainee(run, pairs(16))
    peft, order = peft_start(one), shown(one)
    trainer = DPOTrainer(
        model=peft,
        args=DPOConfig(beta=0.1, **arguments(run, tmp_path)),
        train_dataset=Dataset.from_dict(
            {"prompt": ["a"] * len(order), "chosen": ["b"] * len(order), "rejected": ["c"] * len(order)}
        ),
        processing_class=AutoTokenizer.from_pretrained(copy_tokenizer(tmp_path / "tokenizer")),
    )
    trainer.train_dataset = Dataset.from_dict(
        {
            "prompt_ids": [list(item.sequences[0].token_ids[:5]) for item in order],
            "chosen_ids": [list(item.sequences[0].token_ids[5:]) for item in order],
            "rejected_ids": [list(item.sequences[1].token_ids[5:]) for item in order],
        }
    )
    theirs = their_losses(trainer)
    one.sampler.sources = [type(s)(one.with_reference(s.items), s.weight) for s in one.sampler.sources]
    one.sampler = type(one.sampler)(one.sampler.sources, run.batch_size, run.seed)
    ours = our_losses(one)
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert ours[0] == pytest.approx(0.6931, abs=1e-3)
    assert ours[-1] < 0.6
