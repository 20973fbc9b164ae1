"""Models from the Hugging Face hub, in its own cache. Honours HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tunedock_api.errors import BadInput
from tunedock_api.manifest import CONFIG_FILE, WEIGHTS_FILE

from .local import Progress, ProgressSink, not_found

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

# Weights in safetensors only: other formats of the same repository would double the download.
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer.model", "*.tiktoken", "LICENSE*"]


def download(repo_id: str, progress: ProgressSink | None) -> Path:
    """Returns the snapshot folder of `repo_id`. Raises BadInput with what to do when it cannot be had."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise BadInput(
            "Downloading from Hugging Face needs an extra: pip install 'tunedock[server]'.", "model_not_found"
        ) from error
    if progress:
        progress(Progress("download", f"fetching {repo_id} from Hugging Face"))
    with _typed(repo_id):
        return Path(snapshot_download(repo_id, allow_patterns=_PATTERNS))


_PINNED = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})@([0-9a-f]{40})", re.ASCII)
_ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE)


def download_adapter(repository: str, target: Path) -> Path:
    """Puts the two PEFT files of `ORG/NAME@COMMIT` into `target`, or none when anything fails. Raises BadInput.

    Only a full commit is taken: a branch or a tag may name other bytes tomorrow. The hub's listing of the commit says
    how long each file is, and for weights their sha256; what arrives is compared with it.
    """
    pinned = _PINNED.fullmatch(repository)
    if not pinned:
        raise BadInput(
            f"{repository[:200]!r}: give ORG/NAME@COMMIT with all 40 hex digits of the commit, not a branch or a tag."
        )
    name, commit = pinned.groups()
    listed = _listed(name, commit)
    missing = [file for file in _ADAPTER_FILES if file not in listed]
    if missing:
        raise BadInput(f"{repository} holds no {' and no '.join(missing)}: it is no PEFT adapter in safetensors.")
    target.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own: into one that has files already the hub's client fetches nothing while it is offline.
    with TemporaryDirectory(prefix=".fetching-", dir=target.parent) as scratch:
        fetched = [_fetch(name, commit, file, Path(scratch), listed[file]) for file in _ADAPTER_FILES]
        target.mkdir(exist_ok=True)
        for path in fetched:
            path.replace(target / path.name)
    return target


def _listed(name: str, commit: str) -> dict[str, RepoFile]:
    """Path -> what the commit says about that file, of the two that make an adapter."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with _typed(name):
        found = HfApi().get_paths_info(name, list(_ADAPTER_FILES), revision=commit)
    return {entry.path: entry for entry in found if isinstance(entry, RepoFile)}


def _fetch(name: str, commit: str, file: str, scratch: Path, listed: RepoFile) -> Path:
    from huggingface_hub import hf_hub_download

    with _typed(name):
        path = Path(hf_hub_download(name, file, revision=commit, local_dir=scratch))
    expected_bytes = listed.lfs.size if listed.lfs else listed.size
    if path.stat().st_size != expected_bytes or (listed.lfs and _sha256(path) != listed.lfs.sha256):
        raise BadInput(f"{file} of {name} did not arrive as commit {commit[:12]} has it: fetch it again.")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


@contextmanager
def _typed(repo_id: str) -> Iterator[None]:
    """The hub client's errors as BadInput: its own derive from OSError and ValueError, a lost connection stays httpx's."""
    import httpx2

    try:
        yield
    except (OSError, ValueError, httpx2.HTTPError) as error:
        raise not_found(_explain(repo_id, error)) from error


def _explain(repo_id: str, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"The model {repo_id} is gated: accept its terms on Hugging Face and set HF_TOKEN."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"There is no model {repo_id} on Hugging Face, or it is private: check the name and set HF_TOKEN."
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return (
            f"The model {repo_id} is not in the local Hugging Face cache and the hub cannot be reached: "
            "connect to the network, or give a local folder."
        )
    [reason, *_] = str(error).splitlines() or [type(error).__name__]
    return f"The model {repo_id} could not be fetched from Hugging Face: {reason[:200]}"
