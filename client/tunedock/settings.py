"""Where the service is and how to reach it: argument > `TUNEDOCK_*` > `OPENAI_*` > default."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tunedock_api.errors import BadInput

DEFAULT_BASE_URL = "http://127.0.0.1:8000/v1"
# openai's client refuses to start without a key; a server without auth accepts any.
NO_KEY = "no-key"


@dataclass(frozen=True)
class Connection:
    """`timeout_s` bounds one request, `max_retries` counts repeats of a safe request (0 = none).

    `grpc_target` is `host:port` or `grpcs://host:port`; the `tls_*` files are PEM and for gRPC (None: the system's roots,
    no client certificate).
    """

    base_url: str = DEFAULT_BASE_URL
    api_key: str | None = field(default=None, repr=False)
    grpc_target: str | None = None
    timeout_s: float = 600.0
    max_retries: int = 2
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    @property
    def root_url(self) -> str:
        """The address without `/v1`, for `/readyz` and `/metrics`."""
        return self.base_url.removesuffix("/v1")


def connection(
    base_url: str | None = None,
    api_key: str | None = None,
    *,
    grpc: str | None = None,
    timeout_s: float = 600.0,
    max_retries: int = 2,
    env: Mapping[str, str] = os.environ,
) -> Connection:
    """Fills what was not given from the environment. Raises BadInput for an address that is not http(s)."""
    url = base_url or env.get("TUNEDOCK_BASE_URL") or env.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL
    key = api_key or env.get("TUNEDOCK_API_KEY") or env.get("OPENAI_API_KEY")
    tls = {f"tls_{name}": env.get(f"TUNEDOCK_TLS_{name.upper()}") for name in ("ca", "cert", "key")}
    return Connection(_normalised(url), key, grpc or env.get("TUNEDOCK_GRPC"), timeout_s, max_retries, **tls)


def _normalised(url: str) -> str:
    """`http://host:8000` and `http://host:8000/v1/` both mean `http://host:8000/v1`."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise BadInput(
            f"base_url {url[:200]!r} is not an address: write it as http://host:8000/v1 (or set TUNEDOCK_BASE_URL).",
            param="base_url",
        )
    trimmed = url.rstrip("/")
    return trimmed if parts.path.strip("/") else f"{trimmed}/v1"
