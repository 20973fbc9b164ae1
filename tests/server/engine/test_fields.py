"""Which request fields reach the engine, and how a serving profile fills the gaps."""

from __future__ import annotations

from typing import Any

import pytest
from tunedock_api.errors import BadInput
from tunedock_api.manifest import ServingProfile
from tunedock_server.engine import fields

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("name", sorted(fields.REFUSED))
def test_fields_that_a_caller_must_not_set_are_refused_by_name(name: str) -> None:
    with pytest.raises(BadInput) as caught:
        fields.clean({"messages": MESSAGES, name: "x"}, fields.CHAT, 16)
    assert caught.value.param == name


def test_unknown_and_null_fields_are_dropped() -> None:
    body = {"messages": MESSAGES, "model": "m", "store": True, "metadata": {}, "temperature": None, "top_p": 0.5}
    assert fields.clean(body, fields.CHAT, 16) == {"messages": MESSAGES, "top_p": 0.5}


def test_no_field_is_both_accepted_and_refused() -> None:
    assert not (fields.CHAT | fields.COMPLETION) & fields.REFUSED


def test_a_template_cannot_come_in_through_the_template_arguments() -> None:
    with pytest.raises(BadInput):
        fields.clean({"messages": MESSAGES, "chat_template_kwargs": {"chat_template": "x"}}, fields.CHAT, 16)


@pytest.mark.parametrize(
    ("name", "value"),
    [("n", 17), ("n", 0), ("n", "2"), ("top_logprobs", 21), ("max_tokens", -1), ("max_tokens", 2.5), ("stop", [""]),
     ("stop", ["x"] * 17), ("stop", 5), ("stop", ["y" * 2000]), ("response_format", {"schema": "z" * 70_000})],
)  # fmt: skip
def test_values_out_of_bounds_name_their_field(name: str, value: Any) -> None:
    with pytest.raises(BadInput) as caught:
        fields.clean({"messages": MESSAGES, name: value}, fields.CHAT, 16)
    assert caught.value.param == name


def test_a_profile_fills_gaps_and_the_caller_wins() -> None:
    profile = ServingProfile(system_prompt="Be brief.", sampling={"temperature": 0.1, "max_tokens": 9}, stop=("END",))
    merged = fields.apply_profile({"messages": MESSAGES, "temperature": 0.9}, profile)
    assert merged["temperature"] == 0.9
    assert merged["max_tokens"] == 9
    assert merged["stop"] == ["END"]
    assert merged["messages"] == [{"role": "system", "content": "Be brief."}, *MESSAGES]


def test_a_callers_system_message_and_limit_replace_the_profiles() -> None:
    profile = ServingProfile(system_prompt="Be brief.", sampling={"max_tokens": 9})
    own = [{"role": "system", "content": "Be long."}, *MESSAGES]
    merged = fields.apply_profile({"messages": own, "max_completion_tokens": 50}, profile)
    assert merged == {"messages": own, "max_completion_tokens": 50}


def test_template_arguments_are_merged_key_by_key() -> None:
    profile = ServingProfile(chat_template_kwargs={"enable_thinking": False, "style": "a"})
    merged = fields.apply_profile({"messages": MESSAGES, "chat_template_kwargs": {"style": "b"}}, profile)
    assert merged["chat_template_kwargs"] == {"enable_thinking": False, "style": "b"}


def test_a_text_completion_gets_no_system_prompt() -> None:
    merged = fields.apply_profile({"prompt": "x"}, ServingProfile(system_prompt="s", sampling={"top_p": 0.3}))
    assert merged == {"prompt": "x", "top_p": 0.3}
