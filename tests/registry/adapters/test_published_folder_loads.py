"""A published folder is what plain PEFT and stock vLLM read, with the author's own scaling."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.models import tiny_llama
from support.registry import open_registry
from tunedock_api.manifest import Lineage
from tunedock_registry.adapters.intake import ManifestParts, prepare
from tunedock_registry.models.facts import base_facts

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
    "rslora": {"r": 8, "lora_alpha": 12, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj", "up_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "up_proj": 8},
        "alpha_pattern": {"k_proj": 3, "layers.0.mlp.up_proj": 5},
    },
    "one layer": {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj"], "layers_to_transform": [1]},
}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny", vocab=512)


@pytest.fixture(scope="module", params=list(CONFIGS))
def published(
    request: pytest.FixtureRequest, base_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, Path]]:
    """The author's model with its adapter, and the folder that we published of it."""
    folder = tmp_path_factory.mktemp("author")
    author = peft.get_peft_model(_base(base_folder), peft.LoraConfig(task_type="CAUSAL_LM", **CONFIGS[request.param]))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in author.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=generator)
    author.eval().save_pretrained(folder, save_embedding_layers=False)
    parts = ManifestParts(lineage=Lineage(origin="imported"))
    source = prepare(
        folder / "adapter_config.json",
        folder / "adapter_model.safetensors",
        base_facts(base_folder, "tiny", max_rank=8),
        parts,
    )
    registry = open_registry(folder / "home")
    yield author, registry.adapters.path(registry.adapters.publish("default", "a", source, origin="imported"))
    registry.close()


def _base(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _logits(model: Any) -> Any:
    with torch.no_grad():
        return model(torch.arange(32).reshape(1, 32)).logits


def test_peft_gives_the_same_answers_from_the_published_folder(base_folder: Path, published: tuple[Any, Path]) -> None:
    author, folder = published
    loaded = peft.PeftModel.from_pretrained(_base(base_folder), folder).eval()
    assert torch.equal(_logits(loaded), _logits(author))
    assert not torch.allclose(_logits(loaded), _logits(_base(base_folder)), atol=1e-3)


def test_vllm_reads_the_same_scaling_for_every_module(published: tuple[Any, Path]) -> None:
    helper_module = pytest.importorskip("vllm.lora.peft_helper")
    lora_model = pytest.importorskip("vllm.lora.lora_model")
    author, folder = published
    helper = helper_module.PEFTHelper.from_local_dir(str(folder), max_position_embeddings=2048)
    expected = {
        name.removeprefix("base_model.model."): module
        for name, module in author.named_modules()
        if isinstance(getattr(module, "scaling", None), dict)
    }
    leaves = {name.rpartition(".")[2] for name in expected}

    loaded = lora_model.LoRAModel.from_local_checkpoint(
        str(folder), leaves, helper, lora_model_id=1, device="cpu", dtype=torch.float32
    )

    assert set(loaded.loras) == set(expected)
    for name, weights in loaded.loras.items():
        assert weights.scaling == pytest.approx(expected[name].scaling["default"]), name
        assert torch.equal(weights.lora_b, expected[name].lora_B["default"].weight), name
