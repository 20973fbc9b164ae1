"""The client stays light: what it imports and what that costs."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("torch", "vllm", "transformers", "peft", "fastapi", "sqlalchemy", "datasets", "numpy", "pandas")
USES = "import tunedock; tunedock.TuneDock; tunedock.AsyncTuneDock; tunedock.NotFound; tunedock.Version"


def fresh(code: str) -> str:
    """The last line that `code` prints in a new interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip().splitlines()[-1]


def test_importing_the_client_pulls_in_nothing_heavy() -> None:
    loaded = json.loads(fresh(f"import json, sys; {USES}; print(json.dumps(sorted(sys.modules)))"))
    assert not {module.partition(".")[0] for module in loaded} & set(HEAVY)


def test_openai_is_not_imported_before_the_first_call() -> None:
    assert fresh(f"import sys; {USES}; client = tunedock.TuneDock(); print('openai' in sys.modules)") == "False"


def test_the_client_itself_costs_less_than_half_of_what_its_dependencies_cost() -> None:
    dependencies = "import httpx2, typer, rich, grpc; from pydantic import BaseModel, ConfigDict, Field"
    # CPU time beside CPU time: neither a busy nor a slow machine must look like a heavy client.
    timed = (
        f"from time import process_time as now; start = now(); {dependencies}; "
        f"between = now(); {USES}; print((now() - between) / (between - start))"
    )
    assert min(float(fresh(timed)) for _ in range(3)) < 0.5


def test_every_exported_name_can_be_loaded() -> None:
    import tunedock

    assert all(getattr(tunedock, name) is not None for name in tunedock.__all__)
    assert set(tunedock.__all__) <= set(dir(tunedock))


def test_an_unknown_name_is_an_attribute_error() -> None:
    import tunedock

    assert not hasattr(tunedock, "no_such_name")
