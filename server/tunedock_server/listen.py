"""Taking a port, before anything slow happens."""

from __future__ import annotations

import socket

from tunedock_api.errors import BadInput


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket. Raises BadInput in one sentence when the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sets TCP_NODELAY on every connection. Without, Nagle's algorithm and the peer's
    # delayed acknowledgement hold each small answer back for 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise BadInput(
            f"Cannot listen on {host}:{port} ({error.strerror or error}): choose another --port, or stop what uses it.",
            param="port",
        ) from None
    sock.set_inheritable(False)
    return sock
