"""A run that was cut anywhere ends with the weights of one that was not."""

from __future__ import annotations

from pathlib import Path

import torch
from support.training import config, items, step, trainee
from tunedock_trainer.checkpoint import Checkpoints
from tunedock_trainer.settings import LoraConfig

RUN = config(lora=LoraConfig(rank=4, alpha=8, dropout=0.1), batch_size=4, n_epochs=3)


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    straight = trainee(RUN, items(10))
    while straight.step < straight.total_steps:
        step(straight)
    for cut in (1, 3, 5, 8):
        first = trainee(RUN, items(10))
        while first.step < cut:
            step(first)
        states = Checkpoints(tmp_path / str(cut), "run")
        states.save(first, {"note": cut})
        second = trainee(RUN, items(10))
        saved = states.restore(second)
        assert saved is not None
        assert (saved.step, saved.notes) == (cut, {"note": cut})
        while second.step < second.total_steps:
            step(second)
        assert float((second.adapter.params - straight.adapter.params).abs().max()) <= 1e-6


def test_only_the_last_two_states_stay_and_the_newest_is_taken(tmp_path: Path) -> None:
    one, states = trainee(RUN, items(10)), Checkpoints(tmp_path, "run")
    for _ in range(4):
        step(one)
        states.save(one, {}, best=one.adapter.params.clone())
    assert [saved.step for saved in states.all()] == [3, 4]
    fresh = trainee(RUN, items(10))
    saved = states.restore(fresh)
    assert saved is not None
    assert saved.best is not None
    assert torch.equal(saved.best, one.adapter.params)


def test_a_torn_state_and_one_of_other_settings_do_not_exist(tmp_path: Path) -> None:
    one, states = trainee(RUN, items(10)), Checkpoints(tmp_path, "run")
    step(one)
    states.save(one, {})
    step(one)
    torn = states.save(one, {})
    (torn.folder / "manifest.json").write_text('{"digest": "ru')
    assert [saved.step for saved in states.all()] == [1]
    assert Checkpoints(tmp_path, "other settings").restore(trainee(RUN, items(10))) is None
    states.clear()
    assert states.all() == []
