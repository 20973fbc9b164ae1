"""Which linear modules read one and the same tensor: found by watching a short forward pass, not by their names."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn


def find_groups(model: nn.Module, targets: Collection[str], run: Callable[[], object]) -> list[tuple[str, ...]]:
    """Groups of `targets` in the order of use; `run` does a forward pass. Modules that are not reached are left out."""
    calls: list[tuple[str, Tensor]] = []
    handles = [
        module.register_forward_pre_hook(_recorder(name, calls))
        for name, module in model.named_modules()
        if name in targets and isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return _consecutive(calls)


def _recorder(name: str, calls: list[tuple[str, Tensor]]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def record(_module: nn.Module, args: tuple[Any, ...]) -> None:
        calls.append((name, args[0]))

    return record


def _consecutive(calls: list[tuple[str, Tensor]]) -> list[tuple[str, ...]]:
    """A module that is called more than once with different tensors stays alone."""
    counts: dict[str, int] = {}
    for name, _ in calls:
        counts[name] = counts.get(name, 0) + 1
    groups: list[tuple[list[str], Tensor]] = []
    for name, source in calls:
        shared = groups and groups[-1][1] is source and counts[name] == 1 and name not in groups[-1][0]
        if shared and counts[groups[-1][0][0]] == 1:
            groups[-1][0].append(name)
        elif all(name not in group for group, _ in groups):
            groups.append(([name], source))
    return [tuple(names) for names, _ in groups]
