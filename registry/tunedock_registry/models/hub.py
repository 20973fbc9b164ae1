"""Models from the Hugging Face hub, in its own cache. Honours HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE."""

from __future__ import annotations

from pathlib import Path

from tunedock_api.errors import BadInput

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
