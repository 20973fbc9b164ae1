"""Names, aliases and model references: what a caller may put in `model` (design, "Words").

    base-model            the frozen base
    support               = support@production
    support@7             exactly that version
    support@canary        whatever the alias points to now (perhaps weighted)
    support@ckpt-a1b2c3d4-40   a training checkpoint: step 40 of the job whose id begins with a1b2c3d4

Everything here is pure and cheap: it runs once per request.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import BadInput

DEFAULT_ALIAS = "production"
DEFAULT_PROJECT = "default"
MAX_REFERENCE_CHARS = 200

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_CHECKPOINT = re.compile(r"ckpt-[a-z0-9]{8}-[0-9]{1,9}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A parsed reference. Exactly one of `version`, `alias`, `checkpoint` is set."""

    name: str
    version: int | None = None
    alias: str | None = None
    checkpoint: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.version or self.alias or self.checkpoint}"


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def check_name(text: str, what: str = "name", param: str | None = None) -> str:
    """Returns `text`. Raises BadInput unless it is a legal adapter or project name."""
    if not is_name(text):
        raise BadInput(
            f"{what} {text[:80]!r} is not valid: use 1 to 63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit.",
            param=param or what,
        )
    return text


def check_alias(text: str, param: str = "alias") -> str:
    """Returns `text`. Raises BadInput for an illegal alias: digits alone mean a version, `ckpt-…` a checkpoint."""
    check_name(text, "alias", param)
    if text.isdigit() or text.startswith("ckpt-"):
        raise BadInput(f"alias {text!r} is reserved: digits name a version, 'ckpt-' a checkpoint.", param=param)
    return text


def parse_ref(text: str) -> ModelRef | None:
    """Parses `name[@version|@alias|@checkpoint]`; None when the text cannot be a reference to an adapter."""
    if len(text) > MAX_REFERENCE_CHARS:
        return None
    name, at, tail = text.partition("@")
    if not is_name(name):
        return None
    if not at:
        return ModelRef(name, alias=DEFAULT_ALIAS)
    if _VERSION.fullmatch(tail):
        return ModelRef(name, version=int(tail))
    if _CHECKPOINT.fullmatch(tail):
        return ModelRef(name, checkpoint=tail)
    if is_name(tail) and not tail.isdigit() and not tail.startswith("ckpt-"):
        return ModelRef(name, alias=tail)
    return None


def version_ref(name: str, number: int | None, tag: str | None = None) -> str:
    """The public name of one version, as answers carry it: `support@7`, or of a checkpoint by its tag."""
    return f"{name}@{tag if number is None else number}"


def checkpoint_tag(job_id: str, step: int) -> str:
    """The part after '@' of a checkpoint's reference. `job_id` is `ftjob-<24 of a-z0-9>`."""
    return f"ckpt-{job_id.removeprefix('ftjob-')[:8]}-{step}"
