"""Base models on disk: the default one, any local folder, any Hugging Face id."""

from .local import LocalModel, Progress, ProgressSink
from .resolve import DEFAULT_MODEL, resolve_model

__all__ = ["DEFAULT_MODEL", "LocalModel", "Progress", "ProgressSink", "resolve_model"]
