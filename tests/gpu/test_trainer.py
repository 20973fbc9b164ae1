"""The trainer on a CUDA device: same code, chosen by platform."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.training import config, items, step, tiny_path, trainee
from support.training_jobs import MODEL, chats, finished, open_home, queue_job
from tunedock_trainer.base import load_base
from tunedock_trainer.process import Stop, work
from tunedock_trainer.run import Limits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_packed_and_padded_gradients_agree_on_cuda() -> None:
    base = load_base(tiny_path(), MODEL, max_rank=64, dtype=torch.float32)
    packed, padded = trainee(config(), items(8), base), trainee(config(packing=False), items(8), base)
    losses = [(step(packed).tally.loss, step(padded).tally.loss) for _ in range(4)]
    assert base.packs
    assert packed.adapter.params.is_cuda
    for one, two in losses:
        assert one == pytest.approx(two, abs=1e-3)


def test_a_job_is_trained_and_published_on_cuda(tmp_path: Path) -> None:
    registry = open_home(tmp_path / "home")
    job = queue_job(registry, chats(24))
    work(registry, lambda: load_base(tiny_path(None), MODEL, max_rank=64), Limits(), Stop(), once=True)
    assert finished(registry, job).status == "succeeded"
    registry.close()
