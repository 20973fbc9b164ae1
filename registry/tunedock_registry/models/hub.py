"""Models from the Hugging Face hub, in its own cache. Honours HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE."""

from __future__ import annotations

import re
from pathlib import Path

from tunedock_api.errors import BadInput
from tunedock_api.manifest import CONFIG_FILE, WEIGHTS_FILE

from .local import Progress, ProgressSink, not_found

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
    try:
        return Path(snapshot_download(repo_id, allow_patterns=_PATTERNS))
    except (OSError, ValueError) as error:  # huggingface_hub's errors derive from these two
        raise not_found(_explain(repo_id, error)) from error


_PINNED = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})@([0-9a-f]{40})", re.ASCII)


def download_adapter(repository: str, target: Path) -> Path:
    """Puts the two PEFT files of `ORG/NAME@COMMIT` into `target`. Raises BadInput.

    Only a full commit is taken: a branch or a tag may name other bytes tomorrow.
    """
    pinned = _PINNED.fullmatch(repository)
    if not pinned:
        raise BadInput(
            f"{repository[:200]!r}: give ORG/NAME@COMMIT with all 40 hex digits of the commit, not a branch or a tag."
        )
    from huggingface_hub import snapshot_download

    name, commit = pinned.groups()
    try:
        snapshot_download(name, revision=commit, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE], local_dir=target)
    except (OSError, ValueError) as error:  # huggingface_hub's errors derive from these two
        raise not_found(_explain(name, error)) from error
    missing = [file for file in (CONFIG_FILE, WEIGHTS_FILE) if not (target / file).is_file()]
    if missing:
        raise BadInput(f"{repository} holds no {' and no '.join(missing)}: it is no PEFT adapter in safetensors.")
    return target


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
    return f"The model {repo_id} could not be fetched from Hugging Face: {str(error).splitlines()[0][:200]}"
