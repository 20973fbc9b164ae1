"""Is this create a repetition? The openai client retries blindly and marks it only by `x-stainless-retry-count`."""

from __future__ import annotations

import hashlib

from fastapi import Request
from tunedock_api.errors import BadInput
from tunedock_registry.records import Attempt

_MAX_KEY_CHARS = 255


def attempt_of(request: Request, body: bytes | None = None) -> Attempt:
    """`body` None when the registry takes the digest of what it stores itself. Raises BadInput for an overlong key."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= _MAX_KEY_CHARS:
        raise BadInput(f"Idempotency-Key must have 1 to {_MAX_KEY_CHARS} characters.", param="idempotency-key")
    retry = request.headers.get("x-stainless-retry-count", "0") not in ("", "0")
    digest = None if body is None else hashlib.sha256(body).hexdigest()
    return Attempt(key, digest, retry)
