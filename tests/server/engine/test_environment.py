"""What vLLM's processes see in their environment."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tunedock_api.errors import BadInput
from tunedock_server.engine import environment


def test_only_our_plugin_loads_and_nothing_is_reported_home() -> None:
    environ: dict[str, str] = {"VLLM_PLUGINS": ""}
    environment.prepare(environ, 16)
    assert environ["VLLM_PLUGINS"] == "tunedock"
    assert environ["VLLM_NO_USAGE_STATS"] == "1"
    assert environ["VLLM_MAX_N_SEQUENCES"] == "16"


@pytest.mark.parametrize(
    "name", ["VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_SERVER_DEV_MODE", "VLLM_SKIP_MODEL_NAME_VALIDATION"]
)
def test_a_development_switch_stops_the_start(name: str) -> None:
    with pytest.raises(BadInput, match=name):
        environment.prepare({name: "1"}, 16)
    environment.prepare({name: "0"}, 16)


def test_variables_for_children_do_not_stay() -> None:
    environ = {"KEPT": "1", "CHANGED": "old"}
    with environment.temporarily(environ, {"CHANGED": "new", "ADDED": "x"}):
        assert environ == {"KEPT": "1", "CHANGED": "new", "ADDED": "x"}
    assert environ == {"KEPT": "1", "CHANGED": "old"}


def test_compute_threads_spin_briefly_unless_the_operator_said_how(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    ours = environment.cpu_process_variables(2, compiled=False)
    assert (ours["OMP_WAIT_POLICY"], ours["GOMP_SPINCOUNT"]) == ("active", "4000")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.cpu_process_variables(2, compiled=False).keys()


def test_the_plugin_does_nothing_and_imports_nothing_in_a_stock_server() -> None:
    code = "import sys; from tunedock_server.engine.plugin import register; register(); print('torch' in sys.modules, 'vllm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PATH": ""})
    assert done.stdout.split() == ["False", "False"]
