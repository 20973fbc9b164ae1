from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adapters import LEAVES, facts, imported_parts, write_base
from support.corpus import PICKLE_MARK, Attack, attacks, good_config, good_weights, raw_file
from support.pace import costs_at_most
from tunedock_api.errors import Rejected
from tunedock_registry import children
from tunedock_registry.adapters.intake import prepare
from tunedock_registry.adapters.isolation import IsolatedIntake, IsolationLimits
from tunedock_registry.models.facts import BaseFacts

ATTACKS = list(attacks())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseFacts:
    return facts(write_base(tmp_path_factory.mktemp("base") / "tiny"))


@pytest.fixture(scope="module")
def intake() -> Iterator[IsolatedIntake]:
    intake = IsolatedIntake()
    yield intake
    intake.close()


def test_the_corpus_is_built_from_something_that_passes(tmp_path: Path, base: BaseFacts) -> None:
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(good_weights())
    assert prepare(good_config(), weights, base, imported_parts()).manifest.lora.rank == 4


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
def test_every_attack_is_refused_with_its_reason(tmp_path: Path, base: BaseFacts, attack: Attack) -> None:
    weights = tmp_path / "adapter_model.safetensors"
    attack.write(weights)
    with costs_at_most(10), pytest.raises(Rejected) as caught:
        prepare(attack.config, weights, base, imported_parts())
    assert attack.reason in caught.value.message
    assert str(tmp_path) not in caught.value.message
    assert len(caught.value.message) < 600
    assert not PICKLE_MARK.exists()


@pytest.mark.parametrize("name", ["pickle", "70 000 tensors", "nested 100 000 deep", "no effect: B is zero", "pipe"])
def test_the_child_gives_the_same_reasons(tmp_path: Path, base: BaseFacts, intake: IsolatedIntake, name: str) -> None:
    attack = next(attack for attack in ATTACKS if attack.name == name)
    weights = tmp_path / "adapter_model.safetensors"
    attack.write(weights)
    with pytest.raises(Rejected) as caught:
        intake.prepare(attack.config, weights, base, imported_parts())
    assert attack.reason in caught.value.message


def test_the_child_prepares_what_we_would(tmp_path: Path, base: BaseFacts, intake: IsolatedIntake) -> None:
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(good_weights())
    parts = imported_parts(base=base.identity, metrics={"loss": 0.5}, readme="# mine", trained_rank=8)
    assert intake.prepare(good_config(), weights, base, parts) == prepare(good_config(), weights, base, parts)


def test_too_much_memory_ends_the_child_alone(tmp_path: Path, base: BaseFacts) -> None:
    """Ten megabytes of header that become hundreds in memory."""
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(raw_file(b'{"a":[' + b"[]," * (3 * 2**20) + b"[]]}"))
    intake = IsolatedIntake(IsolationLimits(memory_bytes=300 * 2**20))
    with pytest.raises(Rejected, match="more memory"):
        intake.prepare(good_config(), weights, base, imported_parts())
    intake.close()


def test_too_much_time_ends_the_child_alone(tmp_path: Path, base: BaseFacts) -> None:
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(good_weights())
    intake = IsolatedIntake(IsolationLimits(time_s=0))
    with pytest.raises(Rejected, match="longer than"):
        intake.prepare(good_config(), weights, base, imported_parts())
    intake.close()


def test_checks_follow_each_other_in_forks_of_one_child(tmp_path: Path, base: BaseFacts) -> None:
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(good_weights())
    intake = IsolatedIntake()
    intake.warm()
    before = intake.spare_pid
    for _ in range(3):
        intake.prepare(good_config(), weights, base, imported_parts())
    assert intake.spare_pid == before
    intake.close()


def test_a_check_that_dies_leaves_the_child_ready_for_the_next() -> None:
    child = children.start("tunedock_registry.adapters.intake_child", env={"OPENBLAS_NUM_THREADS": "1"})
    try:
        assert children.exchange(child, b"no request", 20.0) == b"\n"
        assert children.exchange(child, b"{}", 20.0) == b"\n"
        assert child.poll() is None
    finally:
        children.end(child)


def test_the_child_sees_no_secrets_of_ours(intake: IsolatedIntake) -> None:
    os.environ["TUNEDOCK_TEST_SECRET"] = "s3cret"
    fresh = IsolatedIntake()
    try:
        fresh.warm()
        assert fresh.spare_pid is not None
        environment = Path(f"/proc/{fresh.spare_pid}/environ").read_bytes()
        assert b"s3cret" not in environment
    finally:
        fresh.close()
        del os.environ["TUNEDOCK_TEST_SECRET"]


def test_many_patterns_cost_no_minutes(tmp_path: Path, base: BaseFacts) -> None:
    config = json.loads(good_config())
    config["alpha_pattern"] = {f"{'x' * 40}.m{number}": 1 for number in range(4_000)}
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(good_weights())
    with costs_at_most(15):
        assert prepare(json.dumps(config).encode(), weights, base, imported_parts()).manifest.lora.rank == 4


@settings(max_examples=300, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_flipped_bit_or_a_cut_file_is_refused_or_still_a_whole_adapter(
    tmp_path_factory: pytest.TempPathFactory, base: BaseFacts, position: float, bit: int, cut: bool
) -> None:
    """Whatever is not refused must be finite, fitting and effective: the digest then names exactly these bytes."""
    data = bytearray(good_weights())
    at = int(position * len(data))
    data[at] ^= 1 << bit
    weights = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    weights.write_bytes(data[:at] if cut else data)
    try:
        prepared = prepare(good_config(), weights, base, imported_parts())
    except Rejected:
        return
    assert not cut
    assert len(prepared.manifest.metrics["delta_norms"]) == 2 * len(LEAVES)


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(sorted(json.loads(good_config()))),
)
def test_any_value_of_any_key_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, base: BaseFacts, value: object, key: str
) -> None:
    weights = tmp_path_factory.getbasetemp() / "good.safetensors"
    if not weights.exists():
        weights.write_bytes(good_weights())
    config = json.dumps({**json.loads(good_config()), key: value}).encode()
    try:
        prepare(config, weights, base, imported_parts())
    except Rejected:
        return
