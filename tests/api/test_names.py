"""Names and model references."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tunedock_api.errors import BadInput
from tunedock_api.names import (
    MAX_REFERENCE_CHARS,
    ModelRef,
    check_alias,
    check_name,
    checkpoint_tag,
    is_name,
    parse_ref,
    version_ref,
)

NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("support", ModelRef("support", alias="production")),
        ("support@7", ModelRef("support", version=7)),
        ("support@canary", ModelRef("support", alias="canary")),
        ("support@ckpt-a1b2c3d4-40", ModelRef("support", checkpoint="ckpt-a1b2c3d4-40")),
    ],
)
def test_a_reference_is_a_name_with_a_version_an_alias_or_a_checkpoint(text: str, ref: ModelRef) -> None:
    assert parse_ref(text) == ref


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@7",
        "support@",
        "support@0",
        "support@07",
        "support@-1",
        "support@7@8",
        "Support",
        "../support",
        "support/7",
        "support\n",
        "support@7\n",
        "sup port",
        "súpport",
        "support@ckpt-x",
        "support@1234567890",
        "a" * 64,
        "a" * (MAX_REFERENCE_CHARS + 1),
        "support@" + "a" * 64,
    ],
)
def test_what_is_not_a_reference_is_refused(text: str) -> None:
    assert parse_ref(text) is None


@given(NAMES, st.integers(1, 999_999_999))
def test_a_version_reference_reads_back(name: str, version: int) -> None:
    assert parse_ref(version_ref(name, version)) == ModelRef(name, version=version)


@given(st.text(max_size=300))
def test_a_parsed_reference_prints_as_something_that_parses_to_itself(text: str) -> None:
    ref = parse_ref(text)
    if ref is not None:
        assert parse_ref(str(ref)) == ref


@given(st.from_regex(r"ftjob-[a-z0-9]{24}", fullmatch=True), st.integers(0, 999_999_999))
def test_a_checkpoint_tag_is_a_legal_checkpoint_reference(job_id: str, step: int) -> None:
    tag = checkpoint_tag(job_id, step)
    assert parse_ref(f"support@{tag}") == ModelRef("support", checkpoint=tag)


@given(st.text(max_size=80))
def test_a_legal_name_never_leaves_a_folder(text: str) -> None:
    if is_name(text):
        assert "/" not in text
        assert "\\" not in text
        assert not text.startswith(".")


def test_an_illegal_name_is_refused_with_the_field_and_the_rule() -> None:
    with pytest.raises(BadInput, match=r"'Über' is not valid: use 1 to 63") as caught:
        check_name("Über", "adapter")
    assert caught.value.param == "adapter"


@pytest.mark.parametrize("alias", ["7", "ckpt-a1b2c3d4-40", "Canary", ""])
def test_an_alias_that_would_read_as_something_else_is_refused(alias: str) -> None:
    with pytest.raises(BadInput):
        check_alias(alias)
