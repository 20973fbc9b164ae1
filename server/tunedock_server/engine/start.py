"""Where the server gets its engine from: the only door into this package that does not import vLLM when it is opened."""

from __future__ import annotations

import os

from ..pool import EnginePool, EngineSettings
from . import environment


def create_engine(settings: EngineSettings) -> EnginePool:
    """The one-machine engine. Imports vLLM here, after its environment is set, so that all else starts without it.

    Raises BadInput when a development switch of vLLM is set in the environment.
    """
    environment.prepare(os.environ, settings.max_n)
    from .local import LocalEngine

    return LocalEngine(settings)
