"""Calls into the worker by method name. No call waits for ever, and none outlives the engine."""

from __future__ import annotations

import asyncio
from typing import Any

from tunedock_api.errors import Internal, Unavailable
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from . import errors

_LIVENESS_POLL_S = 0.25


async def call(llm: AsyncLLM, method: str, *args: Any, timeout_s: float) -> Any:
    """The first worker's result. Raises Unavailable when the engine is dead or does not answer, Internal otherwise.

    vLLM does not fail pending calls when the engine dies, so liveness is polled beside the wait.
    """
    pending = asyncio.ensure_future(llm.collective_rpc(method, args=args))
    deadline = asyncio.get_running_loop().time() + timeout_s
    try:
        while not (await asyncio.wait({pending}, timeout=_LIVENESS_POLL_S))[0]:
            if llm.errored:
                raise errors.engine_down()
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(f"The engine did not answer within {timeout_s:g} s.", retry_after_s=5.0)
        return pending.result()[0]
    except EngineDeadError as error:
        raise errors.engine_down() from error
    except Exception as error:
        if isinstance(error, Unavailable):
            raise
        raise Internal(
            f"The engine could not do {method.removeprefix('tunedock_')}; the log has the details."
        ) from error
    finally:
        pending.cancel()
