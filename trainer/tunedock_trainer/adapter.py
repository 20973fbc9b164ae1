"""The trained state of one adapter: every A and B in one flat fp32 tensor, so that an optimizer step is one kernel.

Shapes: R rank of a module, I and O its input and output width, G·R the ranks of a group of modules with one input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ModuleLora:
    """LoRA of one linear module: W x + scaling · B A x."""

    name: str
    in_features: int
    out_features: int
    rank: int
    scaling: float

    @property
    def num_a(self) -> int:
        return self.rank * self.in_features

    @property
    def num_b(self) -> int:
        return self.rank * self.out_features


@dataclass(frozen=True, slots=True)
class Views:
    """Views into the flat tensors for one group: `a` [G·R, I] and `b[i]` [O_i, R_i], the latter times the scaling.

    `members[i]` is the place of the i-th adapted module in the base's group: not every module need be a target.
    """

    members: tuple[int, ...]
    a: Tensor
    a_grad: Tensor
    b: tuple[Tensor, ...]
    b_grad: tuple[Tensor, ...]
    spans: tuple[tuple[int, int], ...]
    scaling: tuple[float, ...]


class Adapter:
    """`params`, `grads` [P] fp32: for each group all A's, then all B's. `compute` [P] is the same in the base's dtype with
    the scaling folded into B, exactly the numbers that the export writes; `refresh` renews it after a step. `served_dtype`: what
    they are rounded to, when that is another than the base's.

    `groups` name modules that read one and the same input tensor; those that `modules` leaves out are not adapted.
    """

    def __init__(
        self,
        groups: Iterable[tuple[str, ...]],
        modules: Iterable[ModuleLora],
        *,
        dtype: torch.dtype,
        served_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._served_dtype = served_dtype or dtype
        self.modules: dict[str, ModuleLora] = {module.name: module for module in modules}
        self._groups = {names: self._adapted(names) for names in groups}
        self._groups = {names: adapted for names, adapted in self._groups.items() if adapted}
        size = sum(module.num_a + module.num_b for module in self.modules.values())
        self.params = torch.zeros(size, dtype=torch.float32, device=device)
        self.grads = torch.zeros_like(self.params)
        self.compute = torch.zeros(size, dtype=dtype, device=device)
        self._offsets = dict(self._layout())
        self.views = {names: self._views(names, adapted) for names, adapted in self._groups.items()}

    def _adapted(self, names: tuple[str, ...]) -> tuple[ModuleLora, ...]:
        return tuple(self.modules[name] for name in names if name in self.modules)

    def _layout(self) -> Iterator[tuple[str, tuple[int, int]]]:
        offset = 0
        for group in self._groups.values():
            b_offset = offset + sum(module.num_a for module in group)
            for module in group:
                yield module.name, (offset, b_offset)
                offset += module.num_a
                b_offset += module.num_b
            offset = b_offset

    def _views(self, names: tuple[str, ...], group: tuple[ModuleLora, ...]) -> Views:
        start, rank = self._offsets[group[0].name][0], sum(module.rank for module in group)
        stop = start + rank * group[0].in_features
        ends = [sum(module.rank for module in group[: number + 1]) for number in range(len(group))]
        return Views(
            members=tuple(names.index(module.name) for module in group),
            a=self.compute[start:stop].view(rank, -1),
            a_grad=self.grads[start:stop].view(rank, -1),
            b=tuple(self._b(self.compute, module) for module in group),
            b_grad=tuple(self._b(self.grads, module) for module in group),
            spans=tuple((end - module.rank, end) for module, end in zip(group, ends, strict=True)),
            scaling=tuple(module.scaling for module in group),
        )

    def _a(self, flat: Tensor, module: ModuleLora) -> Tensor:
        start = self._offsets[module.name][0]
        return flat[start : start + module.num_a].view(module.rank, module.in_features)

    def _b(self, flat: Tensor, module: ModuleLora) -> Tensor:
        start = self._offsets[module.name][1]
        return flat[start : start + module.num_b].view(module.out_features, module.rank)

    def initialise(self, seed: int) -> None:
        """PEFT's default: A uniform in ±1/√I (Kaiming with a = √5), B zero. The same seed gives the same weights."""
        generator = torch.Generator().manual_seed(seed)
        for name in sorted(self.modules):
            module = self.modules[name]
            bound = 1 / math.sqrt(module.in_features)
            values = torch.rand(module.rank, module.in_features, generator=generator) * (2 * bound) - bound
            self._a(self.params, module).copy_(values)
            self._b(self.params, module).zero_()
        self.refresh()

    def refresh(self) -> None:
        """Copies `params` into `compute`, scaled. Call it after every change of `params`."""
        self.compute.copy_(self.params.to(self._served_dtype))
        for module in self.modules.values():
            if module.scaling != 1.0:
                # Rounded once, from fp32.
                scaled = self._b(self.params, module) * module.scaling
                self._b(self.compute, module).copy_(scaled.to(self._served_dtype))

    def tensors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Module name → (A, B): fp32 views of the training state, not scaled."""
        return {name: (self._a(self.params, module), self._b(self.params, module)) for name, module in self._named()}

    def served(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Module name → (A, B) in the compute dtype with the scaling folded in: what is exported."""
        return {name: (self._a(self.compute, module), self._b(self.compute, module)) for name, module in self._named()}

    def gradients(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Module name → (∂A, ∂B): views of `grads`."""
        return {name: (self._a(self.grads, module), self._b(self.grads, module)) for name, module in self._named()}

    def load(self, tensors: Mapping[str, tuple[Tensor, Tensor]], *, folded: bool) -> None:
        """Takes A and B by module name; `folded` says that their B holds the scaling already.

        Raises ValueError when a module is missing or a shape differs.
        """
        if tensors.keys() != self.modules.keys():
            odd = sorted(tensors.keys() ^ self.modules.keys())
            raise ValueError(f"the adapters differ in {len(odd)} modules, for example {odd[0]}")
        for name, module in self._named():
            a, b = tensors[name]
            target_a, target_b = self._a(self.params, module), self._b(self.params, module)
            if a.shape != target_a.shape or b.shape != target_b.shape:
                raise ValueError(f"module {name} has rank {a.shape[0]}, expected {module.rank}")
            target_a.copy_(a)
            # In fp32: times the scaling it is, rounded, the very number again.
            target_b.copy_(b.float() / module.scaling if folded else b)
        self.refresh()

    def _named(self) -> Iterable[tuple[str, ModuleLora]]:
        return sorted(self.modules.items())
