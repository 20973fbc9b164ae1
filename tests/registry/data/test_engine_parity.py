"""What training renders is what vLLM's chat endpoint renders: compared with vLLM's own functions."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
from support.datasets import assistant, call, tool, user
from support.models import default_model_path
from tunedock_registry.data.render import Renderer
from tunedock_registry.models.tokenizer import load_tokenizer

protocol = pytest.importorskip("vllm.entrypoints.openai.chat_completion.protocol", reason="the engine is not installed")

# Shows everything a template can see: the key order of calls and tools included.
SHOWS_ALL = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}"
    "{{ m['name'] or '' }}{{ m['tool_call_id'] or '' }}\n{{ m['content'] }}{{ (m['tool_calls'] or []) | tojson }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KNOWS_DEVELOPER = SHOWS_ALL + "{# 'developer' #}"
SYSTEM = {"role": "system", "content": "Be brief."}
DEVELOPER = {"role": "developer", "content": "Be kind."}
CALLS = (
    user("weather?"),
    assistant(None, tool_calls=[call("w", '{"b": 1, "a": {"z": null}}'), call("w", "", "c2")], weight=1),
    {"role": "tool", "content": "cold", "tool_call_id": "c1"},
    {
        "role": "tool",
        "content": [{"type": "text", "text": "very"}, {"type": "text", "text": "cold"}],
        "tool_call_id": "c2",
    },
)


@dataclass
class ModelConfig:
    """The two settings that vLLM's message parser looks at."""

    enable_prompt_embeds: bool = False
    multimodal_config: None = None


@pytest.fixture(scope="module")
def smollm() -> Any:
    return load_tokenizer(default_model_path())


def engine_prompt(tokenizer: Any, messages: list[Any], tools: list[Any]) -> str:
    from vllm.renderers.chat_utils import parse_chat_messages
    from vllm.renderers.hf import safe_apply_chat_template

    request = protocol.ChatCompletionRequest.model_validate(
        {"model": "m", "messages": copy.deepcopy(messages), "tools": copy.deepcopy(tools) or None}
    )
    conversation, _, _ = parse_chat_messages(request.messages, ModelConfig(), "string")
    return str(
        safe_apply_chat_template(
            ModelConfig(),
            tokenizer,
            conversation,
            tools=[tool.model_dump() for tool in request.tools] if request.tools else None,
            chat_template=tokenizer.chat_template,
            tokenize=False,
            add_generation_prompt=True,
            continue_final_message=False,
        )
    )


@pytest.mark.parametrize("template", [None, SHOWS_ALL, KNOWS_DEVELOPER], ids=["smollm2", "shows all", "developer"])
@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ([user("hi")], []),
        ([SYSTEM, user("hi"), assistant("ho", weight=0), {**user("x"), "name": "bob"}], []),
        ([DEVELOPER, user("hi")], []),
        ([SYSTEM, user("hi"), assistant("ho"), DEVELOPER, user("x")], []),
        ([user("hi"), {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], []),
        (list(CALLS), [tool("w", type="object", properties={"b": {"type": "integer"}})]),
        (list(CALLS), []),
        ([user("hi")], [{"type": "function", "function": {"strict": True, "description": "d", "name": "w"}}]),
    ],
)
def test_the_prompt_equals_the_engines(
    smollm: Any, template: str | None, messages: list[Any], tools: list[Any]
) -> None:
    tokenizer = copy.copy(smollm)
    tokenizer.chat_template = template or smollm.chat_template
    assert Renderer(tokenizer).chat_prompt(messages, tools) == engine_prompt(tokenizer, messages, tools)
