"""Who is calling, and may they. Decided from the matched route's policy and the Authorization header, nothing else.

Paths, `Host` and forwarded headers play no part: every auth bypass of the last years came from a decision on them
(GHSA-94f4-hr76-p5j6, CVE-2026-48710).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from enum import StrEnum

from tunedock_api.errors import Unauthenticated
from tunedock_api.names import DEFAULT_PROJECT


class Policy(StrEnum):
    """What a route asks of its caller."""

    PUBLIC = "public"
    INFERENCE = "inference"
    MODELS = "models"
    FILES = "files"
    JOBS = "jobs"
    ADAPTERS_READ = "adapters:read"
    ADAPTERS_WRITE = "adapters:write"
    WEBHOOKS = "webhooks"
    OPERATE = "operate"


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller. `actor` is what history and logs say; never a secret."""

    project: str = DEFAULT_PROJECT
    actor: str = "anonymous"


@dataclass(frozen=True)
class Authenticator:
    """`api_key` None turns authentication off: any key, or none, is the default project."""

    api_key: str | None = None

    def check(self, authorization: str | None, policy: Policy) -> Principal:
        """Raises Unauthenticated for a missing or wrong key."""
        if self.api_key is None or policy is Policy.PUBLIC:
            return Principal()
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthenticated("No API key was sent: use the header 'Authorization: Bearer KEY'.")
        if not hmac.compare_digest(key.strip().encode(), self.api_key.encode()):
            raise Unauthenticated("Incorrect API key provided.")
        return Principal(actor="admin")
