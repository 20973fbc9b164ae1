"""Where the server gets its engine from: the only door into this package that does not import vLLM when it is opened."""

from __future__ import annotations

import os

from ..pool import EnginePool, EngineSettings
from . import environment, forking


def begin_imports(settings: EngineSettings) -> None:
    """Lets the engine's process import vLLM from now on, and returns at once: call it before anything else that takes time.

    Raises BadInput when a development switch of vLLM is set in the environment.
    """
    environment.prepare(os.environ, settings.max_n)
    with environment.temporarily(os.environ, environment.process_variables(settings)):
        forking.begin()


def create_engine(settings: EngineSettings) -> EnginePool:
    """The one-machine engine. Imports vLLM here, after its environment is set, so that all else starts without it.

    Raises BadInput when a development switch of vLLM is set in the environment.
    """
    begin_imports(settings)
    from .local import LocalEngine

    return LocalEngine(settings)
