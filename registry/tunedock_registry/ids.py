"""Public identifiers: a prefix that says what it is, and 24 random characters (124 bits)."""

from __future__ import annotations

import secrets
import string

ALPHABET = string.ascii_lowercase + string.digits


def new_id(prefix: str) -> str:
    """`new_id("file-")` → `file-` and 24 of `[a-z0-9]`."""
    return prefix + "".join(secrets.choice(ALPHABET) for _ in range(24))
