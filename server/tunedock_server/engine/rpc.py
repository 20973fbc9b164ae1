"""Calls into the worker by method name. No call waits for ever, and none outlives the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from tunedock_api.errors import Internal, TuneDockError, Unavailable
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from . import errors

_LIVENESS_POLL_S = 0.25


async def call(llm: AsyncLLM, method: str, *args: Any, timeout_s: float) -> Any:
    """The first worker's result of an extension method; raises what `wait` does."""
    return (await wait(llm, llm.collective_rpc(method, args=args), timeout_s=timeout_s))[0]


async def wait(llm: AsyncLLM, calling: Coroutine[Any, Any, Any], timeout_s: float) -> Any:
    """Raises Unavailable when the engine is dead or does not answer, Internal when the call failed.

    vLLM does not fail pending calls when the engine dies, so liveness is polled beside the wait.
    """
    pending = asyncio.ensure_future(calling)
    deadline = asyncio.get_running_loop().time() + timeout_s
    try:
        while not (await asyncio.wait({pending}, timeout=_LIVENESS_POLL_S))[0]:
            if llm.errored:
                raise errors.engine_down()
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(f"The engine did not answer within {timeout_s:g} s.", retry_after_s=5.0)
        return pending.result()
    except EngineDeadError as error:
        raise errors.engine_down() from error
    except TuneDockError:
        raise
    except Exception as error:
        raise Internal("A call to the engine failed; the log has the details.") from error
    finally:
        pending.cancel()
