"""Engines are forked from a process that has imported vLLM already: the fork server of `multiprocessing`, one of our own.

Importing vLLM takes 14 s on a 2-core machine, and both the server and its engine need it. The fork server imports while the
server does, on another core, and stays: an engine that died comes back without that. It has no threads of ours, no sockets
and no device, so that forking it is safe on every platform; its pages are shared with the engine.

Libraries read some variables when they are loaded (`_READ_ONCE`), which is before an engine is asked for. So there is one
fork server for each set of their values; usually one at all.
"""

from __future__ import annotations

import io
import os
from functools import cache
from multiprocessing import popen_forkserver, reduction, spawn, util
from multiprocessing.context import ForkServerContext, ForkServerProcess, set_spawning_popen
from multiprocessing.forkserver import ForkServer, read_signed
from multiprocessing.process import BaseProcess
from typing import Any

_READ_ONCE = ("GOMP_SPINCOUNT", "LD_PRELOAD", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "TORCH_COMPILE_DISABLE")
_IMPORTED = f"{__package__}.imported"


def begin() -> None:
    """Starts the fork server of this environment unless it runs, and returns at once: the first fork waits for its imports."""
    fork_server().ensure_running()


def engine_context() -> ForkServerContext:
    """In place of `vllm.utils.system_utils.get_mp_context`: its `Process` is an engine, ready to start."""
    return _Context()


def fork_server() -> ForkServer:
    """The one for the present environment; not running before somebody asks it to."""
    return _fork_server(tuple((name, os.environ.get(name)) for name in _READ_ONCE))


@cache
def _fork_server(environment: tuple[tuple[str, str | None], ...]) -> ForkServer:
    """Not the one that `multiprocessing` shares among all callers of a process: those would fork all of vLLM."""
    server = ForkServer()
    server.set_forkserver_preload([_IMPORTED])
    return server


class _Popen(popen_forkserver.Popen):
    _fds: list[int]  # set by the base class

    def _launch(self, process_obj: BaseProcess) -> None:
        """As the standard one, which knows only the shared fork server."""
        data = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(spawn.get_preparation_data(process_obj.name), data)
            reduction.dump(process_obj, data)
        finally:
            set_spawning_popen(None)
        self.sentinel, to_child = fork_server().connect_to_new_process(self._fds)
        kept = os.dup(to_child)  # its closing tells the child that we are gone
        self.finalizer = util.Finalize(self, _close, (kept, self.sentinel))
        with open(to_child, "wb") as pipe:
            pipe.write(data.getbuffer())
        self.pid = read_signed(self.sentinel)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class _Process(ForkServerProcess):
    """Has the environment that its starter had then, as a spawned process would."""

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        # Only what differs: setproctitle finds the command line by the first variable that was there at the start.
        for name in os.environ.keys() - self._environment.keys():
            del os.environ[name]
        os.environ.update(dict(self._environment.items() - os.environ.items()))
        super().run()

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        return _Popen(process_obj)


class _Context(ForkServerContext):
    Process = _Process
