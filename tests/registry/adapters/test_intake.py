from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.adapters import (
    LEAVES,
    facts,
    imported_parts,
    lora_config,
    lora_tensors,
    make_prepared,
    prepare_folder,
    write_base,
    write_lora,
)
from tunedock_api.errors import Rejected
from tunedock_api.manifest import Probe, ProbeExample, ServingProfile
from tunedock_registry.adapters.canonical import canonical_config, parse_config, resolve
from tunedock_registry.models.facts import BaseFacts


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseFacts:
    return facts(write_base(tmp_path_factory.mktemp("base") / "tiny"))


def test_a_plain_peft_folder_is_prepared_with_its_bytes_untouched(tmp_path: Path, base: BaseFacts) -> None:
    prepared = make_prepared(tmp_path, base)

    config = json.loads(prepared.config)
    assert config["base_model_name_or_path"] == "tiny"
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.0)
    assert prepared.manifest.lora.rank == 4
    assert prepared.manifest.lora.num_parameters == sum(t.size for t in lora_tensors().values())
    assert prepared.digest == prepared.manifest.identity.digest()


def test_the_digest_covers_weights_config_base_and_serving_profile_but_not_lineage(
    tmp_path: Path, base: BaseFacts
) -> None:
    folder = write_lora(tmp_path)
    digest = prepare_folder(folder, base).digest

    assert prepare_folder(folder, base, imported_parts(metrics={"loss": 1.0})).digest == digest
    profile = ServingProfile(system_prompt="Answer in JSON.")
    assert prepare_folder(folder, base, imported_parts(serving=profile)).digest != digest
    write_lora(tmp_path, lora_alpha=4)
    assert prepare_folder(folder, base).digest != digest


def test_the_same_adapter_saved_in_another_key_order_has_the_same_digest(tmp_path: Path, base: BaseFacts) -> None:
    folder = write_lora(tmp_path)
    digest = prepare_folder(folder, base).digest
    config = lora_config(target_modules=["down_proj", "v_proj", "q_proj"], lora_alpha=8.0)
    (folder / "adapter_config.json").write_text(json.dumps(dict(reversed(config.items())), indent=2))
    assert prepare_folder(folder, base).digest == digest


def test_norms_are_those_of_the_scaled_product(tmp_path: Path, base: BaseFacts) -> None:
    prepared = make_prepared(tmp_path, base)
    tensors = lora_tensors()
    for module, norm in prepared.manifest.metrics["delta_norms"].items():
        a = tensors[f"base_model.model.{module}.lora_A.weight"]
        b = tensors[f"base_model.model.{module}.lora_B.weight"]
        assert norm == pytest.approx(float(np.linalg.norm(b @ a)) * 8 / 4, rel=1e-4)


@pytest.mark.parametrize("rslora", [False, True])
def test_canonical_patterns_resolve_as_the_authors_did(base: BaseFacts, rslora: bool) -> None:
    raw = json.dumps(
        lora_config(
            rank_pattern={"layers.0.self_attn.q_proj": 2, "q_proj": 8, "down_proj": 2},
            alpha_pattern={"mlp.down_proj": 0.5, "proj": 3},
            use_rslora=rslora,
        )
    ).encode()
    settings = parse_config(raw)
    modules = sorted(base.modules)

    again = parse_config(canonical_config(settings, modules, base.modules, "tiny"))

    assert resolve(again, modules) == resolve(settings, modules)
    expected = resolve(settings, modules)["model.layers.0.mlp.down_proj"].scaling(rslora)
    assert expected == pytest.approx(0.5 / math.sqrt(2) if rslora else 0.25)
    assert again.rank == 2
    assert dict(again.rank_pattern) == {"model.layers.1.self_attn.q_proj": 8, "v_proj": 4}


def test_modules_of_some_layers_only_are_named_in_full(tmp_path: Path, base: BaseFacts) -> None:
    tensors = {name: value for name, value in lora_tensors().items() if ".layers.1." in name}
    folder = write_lora(tmp_path, tensors, layers_to_transform=[1], layers_pattern="layers")
    config = json.loads(prepare_folder(folder, base).config)
    assert config["target_modules"] == sorted(f"model.layers.1.{leaf}" for leaf in LEAVES)


@pytest.mark.parametrize("kind", ["f2", "bf16"])
def test_half_precision_files_are_scanned_without_torch(tmp_path: Path, base: BaseFacts, kind: str) -> None:
    folder = write_lora(tmp_path)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(_narrowed(lora_tensors(), kind))
    norms = prepare_folder(folder, base).manifest.metrics["delta_norms"]
    full = make_prepared(tmp_path / "full", base).manifest.metrics["delta_norms"]
    assert norms == pytest.approx(full, rel=2e-2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["f4", "f2", "bf16"])
def test_a_value_that_is_not_finite_is_refused(tmp_path: Path, base: BaseFacts, kind: str, value: float) -> None:
    tensors = lora_tensors()
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    tensors[name][3, 1] = value
    folder = write_lora(tmp_path)
    (folder / "adapter_model.safetensors").write_bytes(_narrowed(tensors, kind))
    with pytest.raises(Rejected, match=r"layers\.1\.mlp\.down_proj\.lora_B.*value number 13 is NaN or infinite"):
        prepare_folder(folder, base)


def test_an_adapter_for_another_base_model_is_refused_with_both_values(tmp_path: Path, base: BaseFacts) -> None:
    other = facts(write_base(tmp_path / "other", seed=9)).identity
    with pytest.raises(Rejected) as caught:
        prepare_folder(write_lora(tmp_path / "lora"), base, imported_parts(base=other))
    assert other.config_sha256 in str(caught.value)
    assert base.identity.config_sha256 in str(caught.value)
    assert caught.value.details["part"] == "config_sha256"


def test_the_same_base_model_under_another_name_is_the_same(tmp_path: Path, base: BaseFacts) -> None:
    declared = base.identity.model_copy(update={"id": "elsewhere/tiny"})
    assert (
        prepare_folder(write_lora(tmp_path), base, imported_parts(base=declared)).manifest.identity.base_model
        == base.identity
    )


def test_a_changed_chat_template_is_another_base_model(tmp_path: Path, base: BaseFacts) -> None:
    other = facts(write_base(tmp_path / "other", template="{{ bos }}")).identity
    assert other.config_sha256 == base.identity.config_sha256
    with pytest.raises(Rejected, match="chat template"):
        prepare_folder(write_lora(tmp_path / "lora"), base, imported_parts(base=other))


def _probe(**changes: Any) -> Probe:
    example: dict[str, Any] = {
        "token_ids": (1, 2, 3),
        "start": 1,
        "adapter_logprobs": (-0.1, -0.2),
        "base_logprobs": (-1.0, -2.0),
        "adapter_top1": (2, 3),
    }
    return Probe(dtype="bfloat16", examples=(ProbeExample(**{**example, **changes}),))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"adapter_logprobs": (-0.1,)}, "lengths"),
        ({"start": 3, "adapter_logprobs": (), "base_logprobs": (), "adapter_top1": ()}, "0 scored positions"),
        ({"token_ids": (1, 2, 64)}, "vocabulary"),
        ({"adapter_top1": (2, -1)}, "vocabulary"),
        ({"base_logprobs": (-1.0, math.nan)}, "log-probability"),
        ({"base_logprobs": (-1.0, 0.5)}, "log-probability"),
    ],
)
def test_a_probe_that_the_engine_cannot_replay_is_refused(
    tmp_path: Path, base: BaseFacts, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Rejected, match=reason):
        make_prepared(tmp_path, base, probe=_probe(**changes))


def test_a_good_probe_travels_in_the_manifest(tmp_path: Path, base: BaseFacts) -> None:
    assert make_prepared(tmp_path, base, probe=_probe()).manifest.probe == _probe()


def test_metrics_that_are_not_json_are_refused(tmp_path: Path, base: BaseFacts) -> None:
    with pytest.raises(Rejected, match="not plain JSON"):
        make_prepared(tmp_path, base, metrics={"loss": math.nan})


def _narrowed(tensors: dict[str, Any], kind: str) -> bytes:
    """A safetensors file of F32, F16 or BF16 (by truncation), written by hand."""
    names = {"f4": "F32", "f2": "F16", "bf16": "BF16"}
    header: dict[str, Any] = {}
    body = b""
    for name, value in tensors.items():
        with np.errstate(over="ignore"):
            data = (value.view(np.uint32) >> 16).astype("<u2") if kind == "bf16" else value.astype(f"<{kind}")
        header[name] = {
            "dtype": names[kind],
            "shape": value.shape,
            "data_offsets": [len(body), len(body) + data.nbytes],
        }
        body += data.tobytes()
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + body
