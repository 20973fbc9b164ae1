"""The manifest and the digest that is a version's identity."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from tunedock_api.manifest import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    BaseModelIdentity,
    FileEntry,
    Identity,
    Lineage,
    LoraShape,
    Manifest,
    Probe,
    ProbeExample,
    ServingProfile,
    canonical_json,
)

BASE = BaseModelIdentity(id="base", config_sha256="c" * 64, tokenizer_sha256="t" * 64, chat_template_sha256="p" * 64)
FILES = {
    CONFIG_FILE: FileEntry(sha256="1" * 64, size_bytes=10),
    WEIGHTS_FILE: FileEntry(sha256="2" * 64, size_bytes=20),
}
IDENTITY = Identity(files=FILES, base_model=BASE)


def manifest(identity: Identity = IDENTITY) -> Manifest:
    return Manifest(
        digest=identity.digest(),
        identity=identity,
        lora=LoraShape(rank=16, target_modules=("q_proj",), num_parameters=100),
        lineage=Lineage(origin="trained", job_id="ftjob-x"),
        probe=Probe(
            dtype="bfloat16",
            examples=(
                ProbeExample(
                    token_ids=(1, 2), start=1, adapter_logprobs=(-0.5,), base_logprobs=(-2.0,), adapter_top1=(2,)
                ),
            ),
        ),
    )


def test_the_digest_does_not_depend_on_the_order_of_the_files() -> None:
    turned = Identity(files=dict(reversed(FILES.items())), base_model=BASE)
    assert turned.digest() == IDENTITY.digest()


@pytest.mark.parametrize(
    "changed",
    [
        IDENTITY.model_copy(update={"files": {**FILES, CONFIG_FILE: FileEntry(sha256="3" * 64, size_bytes=10)}}),
        IDENTITY.model_copy(update={"base_model": BASE.model_copy(update={"chat_template_sha256": "q" * 64})}),
        IDENTITY.model_copy(update={"serving": ServingProfile(system_prompt="Be brief.")}),
    ],
    ids=["a file", "the chat template", "the serving profile"],
)
def test_anything_that_changes_answers_changes_the_digest(changed: Identity) -> None:
    assert changed.digest() != IDENTITY.digest()


def test_lineage_and_metrics_are_no_part_of_the_identity() -> None:
    other = manifest().model_copy(update={"metrics": {"valid_loss": 0.1}})
    assert other.identity.digest() == manifest().digest


def test_a_manifest_reads_back_from_its_json() -> None:
    written = manifest()
    assert Manifest.model_validate_json(written.model_dump_json()) == written


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="surprise"):
        Manifest.model_validate({**manifest().model_dump(), "surprise": 1})


def test_canonical_json_is_sorted_compact_utf8() -> None:
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_json_refuses_numbers_that_json_does_not_have(value: float) -> None:
    with pytest.raises(ValueError):
        canonical_json(value)
