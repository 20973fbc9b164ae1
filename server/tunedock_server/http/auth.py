"""Who is calling, and may they. Decided from the matched route's policy and the Authorization header, nothing else.

Paths, `Host` and forwarded headers play no part: every auth bypass of the last years came from a decision on them
(GHSA-94f4-hr76-p5j6, CVE-2026-48710).
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from tunedock_api.errors import PermissionDenied, Unauthenticated
from tunedock_api.names import DEFAULT_PROJECT
from tunedock_registry.keys import KeyRecord, digest


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
    ADMIN = "admin"


ADMIN_SCOPE = "admin"
Keys = Callable[[], Mapping[str, KeyRecord]]


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller. `actor` is what history and logs say; never a secret."""

    project: str = DEFAULT_PROJECT
    actor: str = "anonymous"


def no_keys() -> Mapping[str, KeyRecord]:
    return {}


@dataclass(frozen=True)
class Authenticator:
    """`api_key` None turns authentication off: any key, or none, is the default project.

    `api_key` is the bootstrap key and may do everything; `keys` are all others, by the sha256 of their secret.
    """

    api_key: str | None = None
    keys: Keys = no_keys
    clock: Callable[[], float] = time.time

    def check(self, authorization: str | None, policy: Policy) -> Principal:
        """Raises Unauthenticated for a missing or wrong key, PermissionDenied for one without the scope."""
        if self.api_key is None or policy is Policy.PUBLIC:
            return Principal()
        scheme, _, key = (authorization or "").partition(" ")
        secret = key.strip()
        if scheme.lower() != "bearer" or not secret:
            raise Unauthenticated("No API key was sent: use the header 'Authorization: Bearer KEY'.")
        if hmac.compare_digest(secret.encode(), self.api_key.encode()):
            return Principal(actor="admin")
        return self._known(secret, policy)

    def _known(self, secret: str, policy: Policy) -> Principal:
        """The look-up is by digest, so its time says nothing about any key."""
        record = self.keys().get(digest(secret))
        if record is None or not record.valid_at(int(self.clock())):
            raise Unauthenticated("Incorrect API key provided.")
        if policy.value not in record.scopes and ADMIN_SCOPE not in record.scopes:
            raise PermissionDenied(f"This API key lacks the scope '{policy.value}'.")
        return Principal(record.project, record.id)
