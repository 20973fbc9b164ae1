"""Generates the Python stubs of `tunedock_api/v1/*.proto` (`make protos`), or checks that they are current (`--check`).

The compiler is old on purpose: what grpcio-tools 1.71.2 writes loads on protobuf 5, 6 and 7, what newer ones write does
not. It needs protobuf < 6 itself, so it runs in an environment of its own, kept under `.protoc/`.

`--check` also compares the contract with the last release (see `breaking.py`).

Where that environment cannot be made (no network), `--check` compares the digest of the .proto files and of the stubs with
the one that was recorded when they were generated.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from pathlib import Path

import breaking

PROTOS = Path(__file__).resolve().parent
PACKAGE = PROTOS / "tunedock_api" / "v1"
RECORD = PACKAGE / "generated.sha256"
ENVIRONMENT = PROTOS.parent / ".protoc"
COMPILER = ("grpcio-tools==1.71.2", "mypy-protobuf==3.7.0", "protobuf<6", "setuptools<81")
OUTPUTS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


class NoCompiler(Exception):
    """The compiler's environment could not be made."""


def sources() -> list[Path]:
    return sorted(PACKAGE.glob("*.proto"))


def generated(folder: Path) -> list[Path]:
    return sorted(path for pattern in OUTPUTS for path in folder.glob(pattern))


def compiler() -> Path:
    """The Python with the compiler. Raises NoCompiler when pip cannot get it."""
    marker = ENVIRONMENT / "requirements"
    python = ENVIRONMENT / "bin" / "python"
    wanted = "\n".join(COMPILER)
    if marker.is_file() and marker.read_text() == wanted and python.exists():
        return python
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--timeout", "20", *COMPILER]
    if subprocess.run(pip, capture_output=True).returncode:
        raise NoCompiler("cannot install " + " ".join(COMPILER))
    marker.write_text(wanted)
    return python


def generate(into: Path) -> None:
    """Writes all stubs to `into`, which stands for the folder `protos/`."""
    python = compiler()
    plugins = python.parent
    command = [python, "-m", "grpc_tools.protoc", f"-I{PROTOS}"]
    command += [f"--plugin=protoc-gen-mypy={plugins}/protoc-gen-mypy"]
    command += [f"--plugin=protoc-gen-mypy_grpc={plugins}/protoc-gen-mypy_grpc"]
    command += [f"--{name}_out={into}" for name in ("python", "grpc_python", "mypy", "mypy_grpc")]
    subprocess.run([*command, *sources()], check=True, stderr=subprocess.DEVNULL)


def digest(paths: Iterable[Path]) -> str:
    """sha256 hex over names and contents."""
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def record() -> str:
    return digest([*sources(), *generated(PACKAGE)])


def stale() -> list[str]:
    """Names of files that a fresh run would write otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {path.name: path.read_bytes() for path in generated(Path(folder, "tunedock_api", "v1"))}
    committed = {path.name: path.read_bytes() for path in generated(PACKAGE)}
    return sorted(name for name in fresh | committed if fresh.get(name) != committed.get(name))


def check() -> str | None:
    """What is wrong, or None."""
    try:
        differing = stale()
    except NoCompiler as error:
        print(f"protos: {error}; comparing with the recorded digest instead", file=sys.stderr)
        return None if RECORD.read_text().strip() == record() else "the .proto files or the stubs have changed"
    return f"not current: {', '.join(differing)}" if differing else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the stubs are not current")
    if parser.parse_args().check:
        if problem := check():
            sys.exit(f"protos: {problem}. Run: make protos")
        breaking.main_check()
        return
    for path in generated(PACKAGE):
        path.unlink()
    generate(PROTOS)
    RECORD.write_text(record() + "\n")


if __name__ == "__main__":
    main()
