from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.datasets import assistant, call, chat, examples, tool, user
from support.models import default_model_path
from tunedock_registry.data.examples import ChatExample, CompletionExample, PreferenceExample
from tunedock_registry.data.render import Rendered, Renderer, RenderError
from tunedock_registry.models.tokenizer import load_tokenizer

# Llama 3's shape. With a GPT-2 style tokenizer the two newlines before an answer merge only when no text follows.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<gh_stars>' + m['role'] + '\n\n' + m['content'] | trim + '<file_sep>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<gh_stars>assistant\n\n' }}{% endif %}"
)
# Refuses a system message and wants user and assistant in turns, as Gemma's template does.
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "<repo_name>{{ m['role'] }}\n{{ m['content'] }}<reponame>\n{% endfor %}"
    "{% if add_generation_prompt %}<repo_name>assistant\n{% endif %}"
)
# Drops the reasoning of all answers but the last, as Qwen3's template does.
FORGETS_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENS_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if think is not defined or think %}<think>\n{% endif %}{% endif %}"
)
PLAIN_TEXT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
PARTS_ONLY = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}<tool_call>{{ c | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def smollm() -> Any:
    return load_tokenizer(default_model_path())


def with_template(tokenizer: Any, template: str) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def chat_example(*messages: Any, **extra: Any) -> ChatExample:
    (example,) = examples(chat(*messages, **extra))
    assert isinstance(example, ChatExample)
    return example


def render(
    example: ChatExample | CompletionExample, tokenizer: Any, template_kwargs: dict[str, Any] | None = None
) -> list[Rendered]:
    return Renderer(tokenizer, template_kwargs).render(example)


def prompt_of(rendered: Rendered) -> list[int]:
    return rendered.token_ids[: rendered.weights.index(1.0)]


def trained_text(tokenizer: Any, rendered: Rendered) -> str:
    pairs = zip(rendered.token_ids, rendered.weights, strict=True)
    return str(tokenizer.decode([token for token, weight in pairs if weight]))


TALK = (user("Hi"), assistant("Hello!"), user("Bye"), assistant("See you."))


def test_only_assistant_text_and_its_turn_end_are_trained(smollm: Any) -> None:
    (rendered,) = render(chat_example(*TALK), smollm)
    assert trained_text(smollm, rendered) == "Hello!<|im_end|>See you.<|im_end|>"
    assert rendered.num_trained == len(smollm.encode("Hello!<|im_end|>")) + len(smollm.encode("See you.<|im_end|>"))


def test_the_sequence_is_the_whole_conversation_up_to_the_last_turn_end(smollm: Any) -> None:
    (rendered,) = render(chat_example(*TALK), smollm)
    text = smollm.apply_chat_template(list(TALK), tokenize=False)
    assert smollm.decode(rendered.token_ids) == text.removesuffix("\n")


def test_what_stands_before_the_answer_is_the_engines_prompt(smollm: Any) -> None:
    (rendered,) = render(chat_example(*TALK[:2]), smollm)
    prompt = smollm.apply_chat_template([TALK[0]], tokenize=True, add_generation_prompt=True, return_dict=False)
    assert prompt_of(rendered) == prompt


def test_weight_zero_makes_a_turn_context(smollm: Any) -> None:
    example = chat_example(user("Hi"), assistant("Hello!", weight=0), user("Bye"), assistant("See you.", weight=1))
    (rendered,) = render(example, smollm)
    assert trained_text(smollm, rendered) == "See you.<|im_end|>"
    assert "Hello!<|im_end|>" in smollm.decode(rendered.token_ids)


def test_messages_after_the_last_trained_turn_are_left_out(smollm: Any) -> None:
    (rendered,) = render(chat_example(*TALK[:3]), smollm)
    assert smollm.decode(rendered.token_ids).endswith("Hello!<|im_end|>")


@pytest.mark.parametrize(
    ("template", "end"), [(LLAMA3, "<file_sep>"), (STRICT, "<reponame>"), (PARTS_ONLY, "<|im_end|>")]
)
def test_the_turn_end_is_learned_from_the_template(smollm: Any, template: str, end: str) -> None:
    tokenizer = with_template(smollm, template)
    rendered = render(chat_example(*TALK), tokenizer)
    assert "".join(trained_text(tokenizer, sequence) for sequence in rendered) == f"Hello!{end}See you.{end}"


def test_where_tokens_would_straddle_the_border_the_prompt_stays_the_engines(smollm: Any) -> None:
    tokenizer = with_template(smollm, LLAMA3)
    for number, sequence in zip((1, 3), render(chat_example(*TALK), tokenizer), strict=True):
        prompt = tokenizer.apply_chat_template(list(TALK[:number]), add_generation_prompt=True, return_dict=False)
        assert prompt_of(sequence) == prompt
        assert tokenizer.convert_ids_to_tokens(prompt)[-1] == "ĊĊ"


def test_a_template_that_forgets_reasoning_gives_each_turn_its_own_sequence(smollm: Any) -> None:
    tokenizer = with_template(smollm, FORGETS_REASONING)
    talk = (user("1+1"), assistant("<think>easy</think>2"), user("2+2"), assistant("<think>hm</think>4"))
    first, second = render(chat_example(*talk), tokenizer)
    assert trained_text(tokenizer, first) == "<think>easy</think>2<|im_end|>"
    assert trained_text(tokenizer, second) == "<think>hm</think>4<|im_end|>"
    prompt = tokenizer.apply_chat_template(list(talk[:3]), add_generation_prompt=True, return_dict=False)
    assert prompt_of(second) == prompt
    assert "easy" not in tokenizer.decode(second.token_ids)


def test_a_generation_prompt_that_training_text_lacks_is_an_error_with_the_remedy(smollm: Any) -> None:
    tokenizer = with_template(smollm, OPENS_REASONING)
    with pytest.raises(RenderError, match="chat_template_kwargs") as caught:
        render(chat_example(*TALK), tokenizer)
    assert caught.value.details == {"line": 1, "check": "unstable_template"}
    assert render(chat_example(*TALK), tokenizer, {"think": False})


def test_a_template_without_turn_end_gets_eos_in_every_turn(smollm: Any) -> None:
    tokenizer = with_template(smollm, PLAIN_TEXT)
    first, second = render(chat_example(*TALK), tokenizer)
    assert trained_text(tokenizer, first) == " Hello!\n<|im_end|>"
    assert trained_text(tokenizer, second) == " See you.\n<|im_end|>"


def test_a_template_that_refuses_an_example_names_its_line_and_reason(smollm: Any) -> None:
    tokenizer = with_template(smollm, STRICT)
    with pytest.raises(RenderError, match="Example 1 is refused by the model's chat template: Conversation roles"):
        render(chat_example({"role": "system", "content": "S"}, *TALK), tokenizer)


def test_tool_arguments_are_parsed_before_rendering(smollm: Any) -> None:
    tokenizer = with_template(smollm, WITH_TOOLS)
    example = chat_example(
        user("weather?"), assistant(None, tool_calls=[call("w", '{"city": "Oslo"}')]), tools=[tool("w")]
    )
    (rendered,) = render(example, tokenizer)
    assert '"arguments": {"city": "Oslo"}' in trained_text(tokenizer, rendered)


def test_an_example_without_trained_turn_is_refused(smollm: Any) -> None:
    with pytest.raises(RenderError, match="no assistant message that is trained") as caught:
        render(ChatExample(3, (user("a"), assistant("b", weight=0))), smollm)
    assert caught.value.details == {"line": 3, "check": "no_trainable_tokens"}


def test_a_developer_message_is_a_system_message(smollm: Any) -> None:
    (as_developer,) = render(chat_example({"role": "developer", "content": "S"}, *TALK), smollm)
    (as_system,) = render(chat_example({"role": "system", "content": "S"}, *TALK), smollm)
    assert as_developer == as_system


def test_a_completion_trains_what_follows_the_prompt_and_eos(smollm: Any) -> None:
    (rendered,) = render(CompletionExample(1, "The capital of France is", " Paris"), smollm)
    assert trained_text(smollm, rendered) == " Paris<|im_end|>"
    assert prompt_of(rendered) == smollm.encode("The capital of France is")


def test_a_token_across_the_border_of_a_completion_is_cut_there(smollm: Any) -> None:
    (rendered,) = render(CompletionExample(1, "inter", "national"), smollm)
    assert prompt_of(rendered) == smollm.encode("inter")
    assert trained_text(smollm, rendered) == "national<|im_end|>"


def test_both_sides_of_a_preference_share_the_prompt(smollm: Any) -> None:
    pair = Renderer(smollm).render_pair(PreferenceExample(1, (user("Hi"),), assistant("Hello!"), assistant("What?")))
    assert prompt_of(pair.preferred) == prompt_of(pair.non_preferred)
    assert trained_text(smollm, pair.preferred) == "Hello!<|im_end|>"
    assert trained_text(smollm, pair.non_preferred) == "What?<|im_end|>"


CONTENT = st.text(st.characters(codec="utf-8", exclude_characters="<>|"), min_size=1, max_size=30).filter(str.strip)
TURN = st.tuples(CONTENT, CONTENT, st.sampled_from([0, 1]))


@settings(max_examples=150, deadline=None)
@given(turns=st.lists(TURN, min_size=1, max_size=4).filter(lambda turns: any(weight for *_, weight in turns)))
def test_for_any_conversation_exactly_the_weighted_answers_are_trained(
    smollm: Any, turns: list[tuple[str, str, int]]
) -> None:
    # SmolLM2's vocabulary lacks a few bytes that only unassigned characters use.
    assume(all(smollm.decode(smollm.encode(said)) == said for _, said, _ in turns))
    messages = [m for asked, said, weight in turns for m in (user(asked), assistant(said, weight=weight))]
    rendered = render(chat_example(*messages), smollm)
    text = "".join(trained_text(smollm, sequence) for sequence in rendered)
    assert text == "".join(f"{said}<|im_end|>" for _, said, weight in turns if weight)
    for sequence in rendered:
        assert len(sequence.token_ids) == len(sequence.weights)


@settings(max_examples=100, deadline=None)
@given(turns=st.lists(TURN, min_size=1, max_size=3))
def test_for_any_conversation_each_prompt_is_the_engines(smollm: Any, turns: list[tuple[str, str, int]]) -> None:
    messages = [m for asked, said, _ in turns for m in (user(asked), assistant(said))]
    rendered = render(chat_example(*messages), smollm)
    last = smollm.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    assert rendered[-1].token_ids[: len(last)] == last
    assert rendered[-1].weights[len(last)] == 1.0
