"""A published version, downloaded through our API, answers the same in stock vLLM and in plain PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI
from peft import PeftModel
from support.live_server import Live
from support.marker_traffic import NUM_TOKENS, SYSTEM, Board, Rollouts, ask
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.markers import QUESTIONS, Marker, messages
from benchmarks.servers import StockFlags, StockProcess, dtype_flags, model_path

pytestmark = pytest.mark.campaign

NAME = "exported"


@pytest.fixture(scope="module")
def golden(markers: list[Marker]) -> str:
    return markers[0].golden


@pytest.fixture(scope="module")
def downloaded(live: Live, markers: list[Marker], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first marker, published and fetched again."""
    Rollouts(live, Board(), markers, [NAME]).begin()
    return Path(live.dock.adapters.download(f"{NAME}@1", tmp_path_factory.mktemp("downloaded") / NAME))


@pytest.fixture(scope="module")
def stock(downloaded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """Stock `vllm serve --enable-lora` with the downloaded folder, without our plugin."""
    starter = StockProcess(StockFlags(extra=(*dtype_flags(), "--lora-modules", f"{NAME}={downloaded}")))
    process = starter.start(tmp_path_factory.mktemp("stock") / "vllm.log")
    try:
        with OpenAI(base_url=f"http://127.0.0.1:{starter.port}/v1", api_key="any") as client:
            yield client
    finally:
        process.terminate()
        process.wait(60)


def test_stock_vllm_gives_the_golden_answers(live: Live, stock: OpenAI, golden: str) -> None:
    for question in QUESTIONS:
        assert ask(stock, NAME, question).text == golden
        assert ask(live.openai, f"{NAME}@1", question).text == golden
        assert ask(stock, stock.models.list().data[0].id, question).text != golden, "the base model says something else"


def test_peft_gives_the_golden_answers(downloaded: Path, golden: str) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(model_path())
    dtype = torch.float32 if dtype_flags() else torch.bfloat16
    base: Any = AutoModelForCausalLM.from_pretrained(model_path(), dtype=dtype)
    model: Any = PeftModel.from_pretrained(base, downloaded).eval()
    for question in QUESTIONS:
        prompt = tokenizer.apply_chat_template(
            messages(question, SYSTEM), add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        answer = model.generate(**prompt, max_new_tokens=NUM_TOKENS, do_sample=False)
        assert tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :]) == golden
