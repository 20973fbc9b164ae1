"""`python -m support.serve_fake HOME PORT_FILE [TOKEN_S]`: the real server process with a fake engine.

Signals, drain, supervision and exit code are those of `tunedock serve`. The trainer process is a sleeper whose pid is in
the file HOME/trainer.pid.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from support.bases import tiny_base
from support.fake_pool import FakePool
from tunedock_registry.layout import Home
from tunedock_registry.registry import Registry
from tunedock_server.app import Server
from tunedock_server.listen import bind
from tunedock_server.run import run_loop, serve
from tunedock_server.settings import Settings
from tunedock_server.supervisor import Supervisor

SLEEPER = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"


def main(home: str, port_file: str, token_s: float) -> None:
    base = tiny_base()
    pool = FakePool(base)
    pool.behaviour.token_s = token_s
    pool.behaviour.tokens = 20
    registry = Registry.open(Home(Path(home)))
    sock = bind("127.0.0.1", 0)
    trainer = Supervisor([sys.executable, "-c", SLEEPER, f"{home}/trainer.pid"], parent_pid=os.getpid(), stop_s=3)
    settings = Settings(home=home, grpc_port=0, drain_timeout_s=20)
    server = Server(settings, registry, pool, base.identity.id, trainer=trainer)

    def announce(_: str) -> None:
        Path(port_file).write_text(str(sock.getsockname()[1]))

    try:
        run_loop(serve(server, sock, announce))
    finally:
        registry.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
