"""Our C code (the LoRA kernel, binding of threads): compiled once for this machine, kept in the user's cache, optional.

Without a C compiler the torch path in `lora_math` does the same, ten times slower in decode steps. Compiling takes seconds.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tunedock_registry import processor

if TYPE_CHECKING:
    from torch import Tensor

_HERE = Path(__file__).parent
_SOURCES = ("lora.c", "bind.c")
_INCLUDED = ("lora_body.h",)
# -march=native makes the library this machine's own. Not -ffast-math: linking with that switches denormals off for the
# whole process (GCC bug 55522), and NaN must survive so that a bad adapter shows.
_FLAGS = (
    *("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    *("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno"),
)
MAX_SLICES = 7
_log = logging.getLogger("tunedock.engine")


class Layer(ctypes.Structure):
    """`layer_t` in lora.c."""

    _fields_ = (
        ("inner", ctypes.c_int64),
        ("slices", ctypes.c_int64),
        ("first", ctypes.c_int64),
        ("offset", ctypes.c_int64 * (MAX_SLICES + 1)),
    )


class Batch(ctypes.Structure):
    """`batch_t` in lora.c. The arrays belong to whoever fills this in."""

    _fields_ = (
        ("groups", ctypes.c_int64),
        ("max_rank", ctypes.c_int64),
        ("tiled", ctypes.c_int64),
        ("table", ctypes.c_void_p),
        ("start", ctypes.c_void_p),
        ("row", ctypes.c_void_p),
    )


PAIR = np.dtype([("a", "u8"), ("b", "u8"), ("rank", "i4"), ("scale", "f4")])
"""`pair_t` in lora.c: where the two matrices of a module lie."""

COMPUTES = {"float32": ("float32", "bfloat16"), "bfloat16": ("bfloat16",)}
"""dtype of x and y -> dtypes of the matrices that there is a kernel for."""


def function(activations: str, weights: str) -> Callable[..., None] | None:
    """The kernel for these dtypes (torch's names); None where there is none."""
    built = library()
    if built is None or weights not in COMPUTES.get(activations, ()):
        return None
    found: Callable[..., None] = getattr(built, _name(activations, weights))
    return found


def add(
    function: Callable[..., None], layer: Layer, batch: Batch, x: Tensor, y: Tensor, scale: float, scratch: Tensor
) -> None:
    """y += scale * x A' B' for every row of the batch. x [rows, inner], y [rows, sum of widths], the innermost stride 1;
    `scratch` holds rows * max_rank * slices floats."""
    function(
        ctypes.addressof(layer),
        ctypes.addressof(batch),
        x.data_ptr(),
        x.stride(0),
        y.data_ptr(),
        y.stride(0),
        scale,
        scratch.data_ptr(),
    )


def _name(activations: str, weights: str) -> str:
    short = {"float32": "f32", "bfloat16": "bf16"}
    return f"tunedock_lora_{short[activations]}_{short[weights]}"


@cache
def library() -> ctypes.CDLL | None:
    """None when it cannot be built here; the reason is logged once."""
    compiler = shutil.which(os.environ.get("CC", "")) or shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        _log.warning("No C compiler: adapters run on torch operators, which is slower.")
        return None
    try:
        library = ctypes.CDLL(str(_built(compiler)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _log.warning("The LoRA kernel cannot be built here, torch operators are used instead: %s", error)
        return None
    library.tunedock_bind.restype = ctypes.c_int64
    library.tunedock_bind.argtypes = (ctypes.c_void_p, ctypes.c_int32)
    for name in (_name(x, w) for x, weights in COMPUTES.items() for w in weights):
        getattr(library, name).restype = None
        getattr(library, name).argtypes = (
            *(ctypes.c_void_p, ctypes.c_void_p),
            *(ctypes.c_void_p, ctypes.c_int64) * 2,
            *(ctypes.c_float, ctypes.c_void_p),
        )
    return library


def _built(compiler: str) -> Path:
    """The library's path. Named by its sources, the compiler and the processor, so that a stale one is never loaded."""
    hasher = hashlib.sha256(f"{compiler} {_FLAGS} {processor.model()} {sorted(processor.features())}".encode())
    for name in (*_SOURCES, *_INCLUDED):
        hasher.update((_HERE / name).read_bytes())
    folder = _cache_folder()
    target = folder / f"lora-{hasher.hexdigest()[:24]}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            draft = Path(temporary) / "lora.so"
            command = [compiler, *_FLAGS, "-o", str(draft), *(str(_HERE / name) for name in _SOURCES)]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            draft.rename(target)
    return target


def _cache_folder() -> Path:
    """Ours alone: whoever could write here could run code in the engine."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "tunedock" / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise OSError(f"{folder} belongs to someone else or others can write to it")
    return folder
