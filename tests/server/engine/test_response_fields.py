"""Responses requests before they reach vLLM."""

from __future__ import annotations

from typing import Any

import pytest
from tunedock_api.errors import BadInput
from tunedock_api.manifest import ServingProfile
from tunedock_server.engine.response_fields import apply_profile, refuse

PROFILE = ServingProfile(
    system_prompt="Be brief.",
    sampling={"temperature": 0.0, "max_tokens": 9, "min_tokens": 2},
    stop=("§",),
    chat_template_kwargs={"style": "plain", "dates": True},
)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "x", "conversation": {"id": "conv_1"}}, "conversation"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "tools": [{"type": "function"}, {"type": "web_search"}]}, "tools[1].type"),
        ({"input": ""}, "input"),
        ({}, "input"),
        ({"input": 7}, "input"),
    ],
)
def test_what_needs_a_store_or_a_hosted_tool_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadInput) as caught:
        refuse(body)
    assert caught.value.param == param


def test_switches_that_are_off_are_no_reason_to_refuse() -> None:
    refuse({"input": "x", "background": False, "previous_response_id": None, "tools": [], "store": True})


def test_a_profile_fills_only_what_the_caller_left_open() -> None:
    body = {"input": "x", "temperature": 0.7, "chat_template_kwargs": {"style": "rich"}}
    assert apply_profile(body, PROFILE) == {
        "input": "x",
        "instructions": "Be brief.",
        "temperature": 0.7,
        "max_output_tokens": 9,
        "stop": ["§"],
        "chat_template_kwargs": {"style": "rich", "dates": True},
    }


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_callers_own_system_message_replaces_that_of_the_profile(role: str) -> None:
    body = {"input": [{"role": role, "content": "Be long."}, {"role": "user", "content": "x"}]}
    assert "instructions" not in apply_profile(body, PROFILE)
