"""A version's files against its digest, before the engine reads them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from tunedock_api.errors import Unavailable
from tunedock_api.manifest import (
    CONFIG_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    BaseModelIdentity,
    FileEntry,
    Identity,
    Lineage,
    LoraShape,
    Manifest,
)
from tunedock_server.engine.intake import VerifiedFiles

CONTENT = {CONFIG_FILE: b"{}", WEIGHTS_FILE: b"weights" * 100}


def _publish(folder: Path) -> str:
    """Writes a version's three files; returns its digest."""
    for name, data in CONTENT.items():
        (folder / name).write_bytes(data)
    files = {n: FileEntry(sha256=hashlib.sha256(d).hexdigest(), size_bytes=len(d)) for n, d in CONTENT.items()}
    base = BaseModelIdentity(id="b", config_sha256="0", tokenizer_sha256="0", chat_template_sha256="0")
    identity = Identity(files=files, base_model=base)
    manifest = Manifest(
        digest=identity.digest(),
        identity=identity,
        lora=LoraShape(rank=1, target_modules=("q_proj",), num_parameters=1),
        lineage=Lineage(origin="imported"),
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json())
    return manifest.digest


def check(files: VerifiedFiles, folder: Path, digest: str) -> None:
    """As the engine does for every load."""
    if not files.known(folder, digest):
        files.verify(folder, digest, "a@1", files.measure(folder, digest, "a@1"))


def test_what_was_hashed_is_not_hashed_again_until_it_changes(tmp_path: Path) -> None:
    digest, files = _publish(tmp_path), VerifiedFiles()
    assert files.measure(tmp_path, digest, "a@1").keys() == CONTENT.keys()
    assert not files.known(tmp_path, digest)
    check(files, tmp_path, digest)
    assert files.known(tmp_path, digest)
    os.utime(tmp_path / WEIGHTS_FILE, ns=(1, 1))
    assert not files.known(tmp_path, digest)


def test_a_change_shows_though_somebody_sets_the_time_back(tmp_path: Path) -> None:
    digest, files = _publish(tmp_path), VerifiedFiles()
    check(files, tmp_path, digest)
    path = tmp_path / WEIGHTS_FILE
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"#")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert not files.known(tmp_path, digest)


def test_untouched_files_pass_again_and_again(tmp_path: Path) -> None:
    digest, files = _publish(tmp_path), VerifiedFiles()
    check(files, tmp_path, digest)
    check(files, tmp_path, digest)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE])
def test_a_missing_file_is_unavailable_without_its_path(tmp_path: Path, name: str) -> None:
    digest, files = _publish(tmp_path), VerifiedFiles()
    check(files, tmp_path, digest)
    (tmp_path / name).unlink()
    with pytest.raises(Unavailable, match=r"a@1 cannot be loaded: its files are missing") as caught:
        check(files, tmp_path, digest)
    assert caught.value.code == "adapter_unavailable"
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE])
def test_a_changed_byte_is_noticed_also_after_it_was_verified(tmp_path: Path, name: str) -> None:
    digest, files = _publish(tmp_path), VerifiedFiles()
    check(files, tmp_path, digest)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1] + b"#")
    os.utime(path, ns=(1, 1))
    with pytest.raises(Unavailable, match="damaged"):
        check(files, tmp_path, digest)


def test_files_of_another_version_are_noticed(tmp_path: Path) -> None:
    _publish(tmp_path)
    with pytest.raises(Unavailable, match="damaged"):
        check(VerifiedFiles(), tmp_path, "0" * 64)


def test_a_file_of_another_size_is_found_without_reading_it(tmp_path: Path) -> None:
    digest, files = _publish(tmp_path), VerifiedFiles()
    files.measure(tmp_path, digest, "a@1")
    os.truncate(tmp_path / WEIGHTS_FILE, 1 << 40)  # a hole: reading it would take the engine's memory
    with pytest.raises(Unavailable, match="damaged"):
        files.measure(tmp_path, digest, "a@1")
