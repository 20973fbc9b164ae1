"""State to resume from: everything that the next step depends on, in fp32. The manifest is written last and is the proof
that the rest is whole; a step without one does not exist."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from tunedock_registry.durable import sync, write_file

from .trainee import Trainee

_WEIGHTS, _MANIFEST = "state.safetensors", "manifest.json"
KEEP = 2


@dataclass(frozen=True)
class Saved:
    """A state on disk. `notes` is what the caller gave: plain JSON."""

    folder: Path
    step: int
    notes: dict[str, Any]
    best: Tensor | None = None


class Checkpoints:
    """The states of one run, in `folder`; `digest` identifies the run's settings and data: others are not resumed.

    `epoch` is the claim's: a trainer that was stopped and wakes up after another took over writes into folders of its own.
    """

    def __init__(self, folder: Path, digest: str, epoch: int = 0) -> None:
        self._folder, self._digest, self._epoch = folder, digest, epoch

    def save(self, trainee: Trainee, notes: dict[str, Any], best: Tensor | None = None) -> Saved:
        """Writes the state after `trainee.step` steps and drops all but the last two. `best` are the best weights so far."""
        target = self._folder / f"step-{trainee.step:08d}-{self._epoch:06d}"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        tensors = {"params": trainee.adapter.params, **trainee.optimizer.state()}
        if best is not None:
            tensors["best"] = best
        save_file({name: tensor.detach().cpu() for name, tensor in tensors.items()}, target / _WEIGHTS)
        manifest = {"digest": self._digest, "step": trainee.step, "notes": notes}
        sync(target / _WEIGHTS)
        write_file(target / _MANIFEST, json.dumps(manifest).encode())
        sync(self._folder)
        for old in self.all()[:-KEEP]:
            shutil.rmtree(old.folder, ignore_errors=True)
        return Saved(target, trainee.step, notes)

    def all(self) -> list[Saved]:
        """Whole states of this run, oldest first."""
        found = [self._read(folder) for folder in sorted(self._folder.glob("step-*"))]
        return [saved for saved in found if saved is not None]

    def restore(self, trainee: Trainee) -> Saved | None:
        """Brings `trainee` to the newest state; None when there is none."""
        states = self.all()
        if not states:
            return None
        saved = states[-1]
        tensors = load_file(saved.folder / _WEIGHTS)
        saved = replace(saved, best=tensors.pop("best", None))
        trainee.adapter.params.copy_(tensors.pop("params"))
        trainee.adapter.refresh()
        trainee.optimizer.load_state(tensors)
        trainee.step = saved.step
        return saved

    def clear(self) -> None:
        """Drops the states: the job is over."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, folder: Path) -> Saved | None:
        try:
            manifest = json.loads((folder / _MANIFEST).read_bytes())
        except (OSError, ValueError):
            return None
        if manifest["digest"] != self._digest:
            return None
        return Saved(folder, manifest["step"], manifest["notes"])
