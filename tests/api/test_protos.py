"""The gRPC contract: stubs are current, and clients of the last release keep working."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

PROTOS = Path(__file__).parents[2] / "protos"


def load(name: str) -> ModuleType:
    """A script of `protos/`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, PROTOS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


breaking: Any = load("breaking")
generate: Any = load("generate")


def test_the_stubs_are_those_of_the_protos() -> None:
    assert generate.RECORD.read_text().strip() == generate.record()


def edited(change: Callable[[Any], None]) -> list[str]:
    """What `change` breaks."""
    after = FileDescriptorSet()
    after.CopyFrom(breaking.current())
    change(after)
    lines: list[str] = breaking.broken(breaking.current(), after)
    return lines


def message(files: Any, name: str) -> Any:
    return next(one for file in files.file for one in file.message_type if one.name == name)


def test_adding_a_field_a_message_and_a_method_breaks_nobody() -> None:
    def add(files: Any) -> None:
        message(files, "Alias").field.add(name="note", number=99, type=9, label=1)
        files.file[0].message_type.add(name="New")
        files.file[0].service[0].method.add(name="New", input_type=".x", output_type=".y")

    assert edited(add) == []


def _renumber(files: Any) -> None:
    message(files, "Alias").field[0].number = 77


def _retype(files: Any) -> None:
    message(files, "Alias").field[0].type = 5


def _rename(files: Any) -> None:
    message(files, "Alias").field[0].name = "other"


def _remove_method(files: Any) -> None:
    del files.file[0].service[0].method[0]


def _stream(files: Any) -> None:
    files.file[0].service[0].method[0].server_streaming = True


@pytest.mark.parametrize("change", [_renumber, _retype, _rename, _remove_method, _stream])
def test_what_breaks_a_client_is_found(change: Callable[[Any], None]) -> None:
    assert edited(change)


def test_the_present_contract_breaks_nobody_since_the_last_release() -> None:
    assert breaking.since_release() == []


def test_the_stubs_load_without_the_server() -> None:
    code = "import sys; from tunedock_api.v1 import adapters_pb2_grpc; print('fastapi' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
