"""Adapters that somebody built to hurt, or that would be served wrongly. Every one must be refused, with its reason."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from .adapters import HIDDEN, FloatArray, lora_config, lora_tensors

PICKLE_MARK = Path(tempfile.gettempdir()) / f"tunedock-pickle-ran-{os.getpid()}"
PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{PREFIX}.lora_A.weight", f"{PREFIX}.lora_B.weight"


@dataclass(frozen=True)
class Attack:
    """`write` puts the weights file at the path that it is given; `reason` is a part of the answer."""

    name: str
    reason: str
    config: bytes
    write: Callable[[Path], None]


def attacks() -> Iterator[Attack]:
    yield from _other_formats()
    yield from _headers()
    yield from _tensors()
    yield from _configs()


def good_config() -> bytes:
    return json.dumps(lora_config()).encode()


def good_weights() -> bytes:
    return bytes(save(lora_tensors(), metadata={"format": "pt"}))


def raw_file(header: Any, data: bytes = b"", claim: int | None = None) -> bytes:
    """A safetensors file with any header at all; `claim` is the length that it says its header has."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if claim is None else claim) + raw + data


def entry(shape: list[int] | None = None, dtype: str = "F32", begin: int = 0, end: int | None = None) -> dict[str, Any]:
    shape = [4, HIDDEN] if shape is None else shape
    size = 4
    for dimension in shape:
        size *= dimension
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size if end is None else end]}


def _weights(name: str, reason: str, data: bytes, config: bytes | None = None) -> Attack:
    return Attack(name, reason, config or good_config(), lambda path: _write(path, data))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {PICKLE_MARK}",)


def _other_formats() -> Iterator[Attack]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as bundle:
        bundle.writestr("../../evil", b"x")
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as bundle_tar:
        bundle_tar.addfile(tarfile.TarInfo("/etc/evil"))
    yield _weights("pickle", "no pickles", pickle.dumps(_Bomb()))
    yield _weights("zip (torch .bin)", "no pickles", archive.getvalue())
    yield _weights("tar.gz", "no pickles", tar.getvalue())
    yield _weights("GGUF", "safetensors header claims", b"GGUF" + b"\x03\0\0\0" + bytes(64))
    yield _weights("empty file", "too short", b"")
    yield _weights("seven bytes", "too short", b"1234567")
    yield Attack("symbolic link", "a link", good_config(), lambda path: path.symlink_to("/etc/passwd"))
    yield Attack("folder", "not a regular file", good_config(), lambda path: path.mkdir())
    yield Attack("pipe", "not a regular file", good_config(), lambda path: os.mkfifo(path))
    yield Attack("device", "a link", good_config(), lambda path: path.symlink_to("/dev/zero"))
    yield Attack("missing", "missing", good_config(), lambda path: None)


def _headers() -> Iterator[Attack]:
    pair = {A: entry(), B: entry([HIDDEN, 4], begin=256)}
    data = bytes(512)
    yield _weights("100 MB header claim", "claims 104857600 bytes", raw_file(pair, data, claim=100 * 2**20))
    yield _weights("header claim of 2^63", "claims 9223372036854775808", raw_file(pair, data, claim=2**63))
    yield _weights("header claim beyond the file", "claims", raw_file(pair, claim=4_000))
    yield _weights("header is a list", "not a JSON object", raw_file([1], data))
    yield _weights("header is not JSON", "not valid JSON", raw_file(b"{'a': 1}", data))
    yield _weights("header is not UTF-8", "not valid JSON", raw_file(b'{"\xff": 1}', data))
    yield _weights("nested 100 000 deep", "nested too deeply", raw_file(b'{"a":' + b"[" * 100_000, data))
    yield _weights("number of 10 000 digits", "not valid JSON", raw_file(b'{"a":' + b"9" * 10_000 + b"}", data))
    yield _weights("NaN in the header", "NaN", raw_file(b'{"a": NaN}', data))
    twice = json.dumps({A: entry()})[:-1] + "," + json.dumps({A: entry()})[1:]
    yield _weights("duplicate tensor", "twice", raw_file(twice.encode(), bytes(256)))
    doubled = b'{"__metadata__":{"a":"b","a":"c"}}'
    yield _weights("duplicate metadata key", "twice", raw_file(doubled))
    yield _weights("no tensors", "no tensors", raw_file({"__metadata__": {}}))
    yield _weights("metadata is a list", "__metadata__", raw_file({"__metadata__": [1], **pair}, data))
    yield _weights("metadata holds numbers", "__metadata__", raw_file({"__metadata__": {"a": 1}, **pair}, data))
    large = {"__metadata__": {"a": "x" * 2**17}, **pair}
    yield _weights("128 KiB of metadata", "__metadata__", raw_file(large, data))
    many = {f"t{number}": entry([1, 1], begin=4 * number) for number in range(70_000)}
    yield _weights("70 000 tensors", "70000 tensors", raw_file(many, bytes(4 * 70_000)))
    empty = {f"t{number}": entry([0, 1]) for number in range(60_000)}
    yield _weights("60 000 empty tensors", "positive dimensions", raw_file(empty))
    yield _weights("shape [0, 2^40]", "positive dimensions", raw_file({A: entry([0, 2**40])}))
    yield _weights("shape of 2^62 bytes", "positive dimensions", raw_file({A: entry([2**31, 2**31])}))
    yield _weights("negative shape", "positive dimensions", raw_file({A: entry([-4, -4], end=64)}, bytes(64)))
    yield _weights(
        "fractional shape", "positive dimensions", raw_file({A: {**entry(), "shape": [4.0, 16]}}, bytes(256))
    )
    yield _weights(
        "true as a dimension", "positive dimensions", raw_file({A: {**entry(), "shape": [True, 64]}}, bytes(256))
    )
    yield _weights("huge counts", "do not fit", raw_file({A: entry([2**30, 2**30], end=256)}, bytes(256)))
    yield _weights("overlapping data", "overlap", raw_file({A: entry(), B: entry([HIDDEN, 4])}, bytes(256)))
    yield _weights("gap in the data", "gap", raw_file({A: entry(begin=8)}, bytes(264)))
    yield _weights("data after the end", "holds", raw_file(pair, data + b"PK\x03\x04"))
    yield _weights("data cut short", "holds", raw_file(pair, data[:-1]))
    yield _weights("offsets backwards", "do not fit", raw_file({A: entry(begin=256, end=0)}, bytes(256)))
    yield _weights("extra key in an entry", "exactly", raw_file({A: {**entry(), "path": "/etc/passwd"}}, bytes(256)))
    yield _weights("pickled dtype", "dtype", raw_file({A: entry(dtype="OBJECT")}, bytes(256)))
    yield _weights("8-bit dtype", "dtype", raw_file({A: entry(dtype="F8_E4M3", end=64)}, bytes(64)))
    yield _weights("integer dtype", "dtype", raw_file({A: entry(dtype="I32")}, bytes(256)))
    yield _weights("name of 10 000 characters", "characters", raw_file({"x" * 10_000: entry()}, bytes(256)))


def _tensors() -> Iterator[Attack]:
    for name in (
        "../../x",
        "/etc/passwd",
        "base_model.model.../../x.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight\0",
        "base_model.model.model.layers.０.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q\u200b_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight",
        "base_model.model.lm_head.base_layer.weight",
        "base_model.model.score.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "",
    ):
        yield _weights(f"tensor named {name[:60]!r}", "Tensor", raw_file({name: entry()}, bytes(256)))
    for module in (
        "model.layers.2.self_attn.q_proj",
        "model.layers.99999.self_attn.q_proj",
        "model.language_model.layers.0.self_attn.q_proj",
        "base_model.model.model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.z_proj",
        "..",
    ):
        yield _renamed(module)
    yield _changed(
        "LoRA on the output layer", "not served", {}, {"base_model.model.lm_head.lora_A.weight": (4, HIDDEN)}
    )
    yield _changed("no lora_B", "must both be there", {}, {}, drop=B)
    yield _changed("no lora_A", "must both be there", {}, {}, drop=A)
    yield _changed("A of a larger base", "does not fit", {}, {A: (4, 2 * HIDDEN)})
    yield _changed("A of a smaller base", "does not fit", {}, {A: (4, HIDDEN // 2)})
    yield _changed("B of a smaller base", "does not fit", {}, {B: (HIDDEN // 2, 4)})
    yield _changed("A transposed", "does not fit", {}, {A: (HIDDEN, 4)})
    yield _changed("ranks of A and B differ", "does not fit", {}, {B: (HIDDEN, 2)})
    yield _changed("rank is not the config's", "scaling would be wrong", {"r": 2}, {})
    yield _changed("rank pattern is not the tensors'", "scaling would be wrong", {"rank_pattern": {"q_proj": 2}}, {})
    yield _changed("rank above the cap", "above the engine's cap of 16", {"r": 32}, {}, rank=32)
    yield _changed("a targeted module without tensors", "not whole", {}, {}, drop="layers.1.mlp")
    zero_b = {name: value * 0 if "lora_B" in name else value for name, value in lora_tensors().items()}
    zero_a = {name: value * 0 if "lora_A" in name else value for name, value in lora_tensors().items()}
    yield _weights("no effect: B is zero", "no effect", save(zero_b))
    yield _weights("no effect: A is zero", "no effect", save(zero_a))
    for value in (float("nan"), float("inf"), float("-inf")):
        tensors = lora_tensors()
        tensors[B][0, 0] = value
        yield _weights(f"holds {value}", "NaN or infinite", save(tensors))


def _renamed(module: str) -> Attack:
    tensors = lora_tensors()
    for side in "AB":
        tensors[f"base_model.model.{module}.lora_{side}.weight"] = tensors.pop(f"{PREFIX}.lora_{side}.weight")
    return _weights(f"module {module}", "does not exist in base model", save(tensors))


def _changed(
    name: str,
    reason: str,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, int]],
    *,
    drop: str | None = None,
    rank: int = 4,
) -> Attack:
    tensors: dict[str, FloatArray] = {
        key: value for key, value in lora_tensors(rank=rank).items() if drop is None or drop not in key
    }
    for key, shape in shapes.items():
        tensors[key] = lora_tensors()[A].ravel()[:1].repeat(shape[0] * shape[1]).reshape(shape)
    return _weights(name, reason, save(tensors), json.dumps(lora_config(**config)).encode())


_CHANGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("peft_type", {"peft_type": "LOKR"}),
    ("peft_type", {"peft_type": None}),
    ("task_type", {"task_type": "SEQ_CLS"}),
    ("r must be", {"r": 0}),
    ("r must be", {"r": -1}),
    ("r must be", {"r": True}),
    ("r must be", {"r": "4"}),
    ("r must be", {"r": 4.0}),
    ("r must be", {"r": 2**40}),
    ("lora_alpha", {"lora_alpha": 0}),
    ("lora_alpha", {"lora_alpha": None}),
    ("lora_alpha", {"lora_alpha": 1e300}),
    ("list of module names", {"target_modules": "(([a-z_.0-9])+)+q_"}),
    ("list of module names", {"target_modules": "all-linear"}),
    ("list of module names", {"target_modules": None}),
    ("list of module names", {"target_modules": []}),
    ("list of module names", {"target_modules": {"q_proj": 1}}),
    ("only literal", {"target_modules": ["(([a-z_.0-9])+)+q_"]}),
    ("only literal", {"target_modules": ["q_proj", 7]}),
    ("only literal", {"target_modules": ["q_prоj"]}),
    ("only literal", {"target_modules": ["../../etc/passwd"]}),
    ("only literal", {"rank_pattern": {"(a+)+$": 4}}),
    ("only literal", {"alpha_pattern": {".*": 4}}),
    ("only literal", {"alpha_pattern": {"^q_proj": 4}}),
    ("q_proj must be", {"rank_pattern": {"q_proj": "4"}}),
    ("q_proj must be", {"alpha_pattern": {"q_proj": [4]}}),
    ("must be an object", {"rank_pattern": ["q_proj"]}),
    ("at most 4096 keys", {"alpha_pattern": {f"m{number}": 1 for number in range(5_000)}}),
    ("bias must be", {"bias": "all"}),
    ("bias must be", {"bias": "lora_only"}),
    ("use_rslora must be", {"use_rslora": "yes"}),
    ("DoRA", {"use_dora": True}),
    ("LoRA bias", {"lora_bias": True}),
    ("QALoRA", {"use_qalora": True}),
    ("aLoRA", {"alora_invocation_tokens": [1, 2]}),
    ("block-diagonal", {"use_bdlora": {"nblocks": 2}}),
    ("layer replication", {"layer_replication": [[0, 1], [0, 2]]}),
    ("fully trained modules", {"modules_to_save": ["lm_head"]}),
    ("fully trained modules", {"modules_to_save": ["score"]}),
    ("mixture of experts", {"target_parameters": ["mlp.experts.gate_up_proj"]}),
    ("token embeddings", {"trainable_token_indices": [1]}),
    ("Arrow", {"arrow_config": {"top_k": 1}}),
    ("KaSA", {"kasa_config": {"beta": 1}}),
    ("LoftQ", {"loftq_config": {"loftq_bits": 4}}),
    ("CorDA", {"corda_config": {"corda_method": "ipm"}}),
    ("LoRA-GA", {"lora_ga_config": {"direction": "x"}}),
    ("transposed", {"fan_in_fan_out": True}),
    ("Megatron", {"megatron_config": {"a": 1}}),
    ("unknown", {"auto_map": {"AutoModel": "evil.py--Model"}}),
    ("unknown", {"vllm_lora_scaling_factor": 9.0}),
    ("unknown", {"velora_config": {"scale": 1}}),
    *((("changes the base weights"), {"init_lora_weights": init}) for init in
      ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "../x", 3, ["gaussian"])),
)  # fmt: skip


def _configs() -> Iterator[Attack]:
    weights = good_weights()
    for reason, change in _CHANGES:
        yield _weights(f"config {str(change)[:70]}", reason, weights, json.dumps(lora_config(**change)).encode())
    for name, reason, raw in (
        ("config is a list", "must be a JSON object", b"[]"),
        ("config is not JSON", "not valid JSON", b"__import__('os')"),
        ("config is empty", "not valid JSON", b" "),
        ("config in UTF-16", "not valid JSON", json.dumps(lora_config()).encode("utf-16")),
        ("config with NaN", "NaN", json.dumps(lora_config(lora_alpha=float("nan"))).encode()),
        ("config with a duplicate key", "twice", b'{"r": 4, "r": 8}'),
        ("config nested deeply", "nested too deeply", b'{"a":' * 50_000),
        ("config of 1 MB", "at most 262144", json.dumps(lora_config(revision="x" * 2**20)).encode()),
    ):
        yield _weights(name, reason, weights, raw)
