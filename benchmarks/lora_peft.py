"""Arm D: transformers + PEFT, the way people serve adapters without a server. Runs in a process of its own.

    python -m benchmarks.lora_peft --model PATH --way WAY FOLDER...

Prints output tokens a second as JSON. The ways, of 32 requests whose adapters take turns unless said otherwise:

`grouped`: all adapters stay in memory, and each request waits for the one batch of its adapter.
`mixed`: one batch of all requests (PEFT's `adapter_names`).
`queued`: batches of neighbours in a random queue that want the same adapter; the first 12 requests.
`loaded`: one request for each adapter, which is read when its turn comes and dropped afterwards.

In the dtype that this processor is fastest with.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from tunedock_registry.processor import multiplies_bfloat16

from .lora_traffic import NUM_STREAMS, PROMPT_TOKENS, prompt

WAYS = ("grouped", "mixed", "queued", "loaded")
NUM_QUEUED = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("folders", nargs="+")
    options = parser.parse_args()
    model = load(options.model, options.folders[0])
    if options.way != "loaded":
        for index, folder in enumerate(options.folders[1:], 1):
            model.load_adapter(folder, adapter_name=name_of(index))
    answer(model, [0], 1)  # warms
    began = time.perf_counter()
    produced = sum(serve(model, options.way, options.folders, options.tokens))
    print(json.dumps({"tokens_per_s": produced / (time.perf_counter() - began)}))


def load(path: Path, folder: str) -> PeftModel:
    dtype = torch.bfloat16 if multiplies_bfloat16() else torch.float32
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return PeftModel.from_pretrained(plain, folder, adapter_name=name_of(0)).eval()


def name_of(index: int) -> str:
    return f"a{index}"


def serve(model: PeftModel, way: str, folders: Sequence[str], num_tokens: int) -> Iterator[int]:
    """Tokens made by each batch."""
    if way == "mixed":
        yield answer(model, range(NUM_STREAMS), num_tokens, [name_of(i % len(folders)) for i in range(NUM_STREAMS)])
        return
    for index, rows in batches(way, len(folders)):
        if way == "loaded" and index:
            model.load_adapter(folders[index], adapter_name=name_of(index))
        model.set_adapter(name_of(index))
        yield answer(model, rows, num_tokens)
        if way == "loaded" and index:
            model.set_adapter(name_of(0))
            model.delete_adapter(name_of(index))


def batches(way: str, num_adapters: int) -> Iterator[tuple[int, list[int]]]:
    """Adapters and the numbers of the requests that they answer together."""
    if way == "loaded":
        wanted = list(range(num_adapters))
    elif way == "grouped":
        wanted = sorted(number % num_adapters for number in range(NUM_STREAMS))
    else:
        wanted = random.Random(0).choices(range(num_adapters), k=NUM_QUEUED)
    for index, places in itertools.groupby(range(len(wanted)), key=wanted.__getitem__):
        yield index, list(places)


@torch.inference_mode()
def answer(model: PeftModel, rows: Sequence[int], num_tokens: int, adapters: list[str] | None = None) -> int:
    """One batch, greedy. Returns the tokens made."""
    ids = torch.tensor([prompt(row + 1, PROMPT_TOKENS) for row in rows])
    mixed = {} if adapters is None else {"adapter_names": adapters}
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, min_new_tokens=num_tokens,
        do_sample=False, **mixed,
    )  # fmt: skip
    return int(out.shape[0]) * (int(out.shape[1]) - PROMPT_TOKENS)


if __name__ == "__main__":
    main()
