"""Arm D: transformers + PEFT, the way people serve adapters without a server. Runs in a process of its own.

    python -m benchmarks.lora_peft --model PATH [--load] FOLDER...

Prints output tokens a second as JSON. Without `--load` all adapters stay in memory and each of 32 requests waits for the
batch of its adapter; with `--load` there is one request for each adapter, read when its turn comes and dropped afterwards. In
the dtype that this processor is fastest with.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from tunedock_registry.processor import multiplies_bfloat16

from .lora_traffic import NUM_STREAMS, PROMPT_TOKENS, prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--load", action="store_true")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("folders", nargs="+")
    options = parser.parse_args()
    dtype = torch.bfloat16 if multiplies_bfloat16() else torch.float32
    plain = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
    model = PeftModel.from_pretrained(plain, options.folders[0], adapter_name="a0").eval()
    names = [f"a{index}" for index in range(len(options.folders))]
    if not options.load:
        for name, folder in zip(names[1:], options.folders[1:], strict=True):
            model.load_adapter(folder, adapter_name=name)
    began = time.perf_counter()
    produced = sum(batch(model, index, names, options) for index in range(len(names)))
    print(json.dumps({"tokens_per_s": produced / (time.perf_counter() - began)}))


@torch.inference_mode()
def batch(model: PeftModel, index: int, names: list[str], options: argparse.Namespace) -> int:
    """The requests of one adapter, as one batch. Returns the tokens made."""
    num = len(names) if options.load else NUM_STREAMS
    rows = [number for number in range(num) if number % len(names) == index]
    if options.load and index:
        model.load_adapter(options.folders[index], adapter_name=names[index])
    model.set_adapter(names[index])
    ids = torch.tensor([prompt(row + 1, PROMPT_TOKENS) for row in rows])
    length = options.tokens
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, min_new_tokens=length, do_sample=False)  # fmt: skip
    if options.load and index:
        model.set_adapter(names[0])
        model.delete_adapter(names[index])
    return int(out.shape[0]) * (int(out.shape[1]) - PROMPT_TOKENS)


if __name__ == "__main__":
    main()
