"""Adapter files as tensors: what the safetensors package reads, and nothing but errors from damaged ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tunedock_server.engine.reading import tensors

CONTENT = {
    "a": torch.randn(3, 5),
    "b": torch.randn(4, 2).bfloat16(),
    "c": torch.randn(7).half(),
    "nothing": torch.zeros(0, 4),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(CONTENT, tmp_path / "adapter.safetensors", metadata={"format": "pt"})
    return tmp_path / "adapter.safetensors"


def test_every_tensor_is_what_was_saved(file: Path) -> None:
    found = tensors(file)
    assert found.keys() == CONTENT.keys()
    for name, expected in CONTENT.items():
        assert torch.equal(found[name], expected)
        assert found[name].dtype == expected.dtype


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "its end is missing": lambda raw: raw[:-1],
    "its header is cut": lambda raw: raw[:50],
    "it is empty": lambda raw: b"",
    "its header claims to be huge": lambda raw: b"\xff" * 8 + raw[8:],
    "its header is no JSON": lambda raw: raw[:8] + b"x" * len(raw[8:]),
    "a shape does not fit its bytes": lambda raw: raw.replace(b"[3,5]", b"[3,6]"),
    "a dtype is none that weights have": lambda raw: raw.replace(b'"BF16"', b'"I16" '),
    "a tensor begins before the file": lambda raw: raw.replace(b'"data_offsets":[0,', b'"data_offsets":[-4,'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_an_error_and_no_tensors(file: Path, damage: Callable[[bytes], bytes]) -> None:
    raw = file.read_bytes()
    file.write_bytes(damage(raw))
    assert file.read_bytes() != raw
    with pytest.raises((ValueError, TypeError)):
        tensors(file)
