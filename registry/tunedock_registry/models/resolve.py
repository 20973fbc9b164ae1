"""Turns what the user typed after `--model` into a folder with a model in it."""

from __future__ import annotations

import re
from pathlib import Path

from ..layout import Home
from . import hub, smollm2
from .local import LocalModel, ProgressSink, check_folder, not_found

DEFAULT_MODEL = smollm2.NAME

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


def resolve_model(spec: str | None, home: Home, progress: ProgressSink | None = None) -> LocalModel:
    """Finds or fetches a base model; None means the default one.

    `spec` is the default's name, a local folder, the name of a folder under `home.models`, or a Hugging Face id.
    Downloads only what is missing. Raises BadInput with code `model_not_found` and one clear line.
    """
    spec = spec or DEFAULT_MODEL
    if spec == DEFAULT_MODEL:
        return smollm2.ensure(home, progress)
    folder = Path(spec).expanduser()
    if folder.is_dir() or _looks_like_path(spec):
        folder = folder.absolute()
        return LocalModel(check_folder(folder), folder.name)
    if "/" not in spec and (home.models / spec).is_dir():
        return LocalModel(check_folder(home.models / spec), spec)
    if not _HUB_ID.fullmatch(spec):
        raise not_found(f"{spec[:200]!r} is neither a folder nor a Hugging Face model id.")
    return LocalModel(check_folder(hub.download(spec, progress)), spec)


def _looks_like_path(spec: str) -> bool:
    return spec.startswith(("/", ".", "~")) or spec.endswith("/")
