"""Examples as token ids with loss weights, for any chat template.

For every trained assistant turn the template is rendered twice: the messages before it with the generation prompt (what
the engine feeds the model when it serves) and the messages up to it. The difference is what the model has to write.
`{% generation %}` markers are not used: few templates have them, and none proves that training equals serving.

One sequence holds all turns of an example when, for each turn, the tokens before it are exactly the engine's prompt.
Where a template renders history differently (reasoning stripped from earlier turns, say) each trained turn gets a
sequence of its own, so that the equality always holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from tunedock_api.errors import BadInput

from .conversation import conversation, tool_dicts
from .examples import ChatExample, CompletionExample, Example, Message, PreferenceExample, Tool, message_weight

_SENTINEL = "qzxsentinelxzq"


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that rendering needs."""

    @property
    def eos_token_id(self) -> int | None: ...

    @property
    def chat_template(self) -> Any: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str: ...

    def apply_chat_template(self, conversation: list[Message], **kwargs: Any) -> Any: ...


class RenderError(BadInput):
    """An example that cannot be trained with this template. `details`: `line` and `check`, our name of the reason."""

    default_code = "invalid_training_file"


@dataclass(frozen=True, slots=True)
class Rendered:
    """`weights[t]` is the loss weight of predicting `token_ids[t]` from the tokens before it; equal lengths."""

    token_ids: list[int]
    weights: list[float]

    @property
    def num_trained(self) -> int:
        return sum(weight > 0 for weight in self.weights)


@dataclass(frozen=True, slots=True)
class RenderedPair:
    """Both sides of a preference; the prompt's tokens are the same."""

    preferred: Rendered
    non_preferred: Rendered


@dataclass(frozen=True, slots=True)
class _Turn:
    """One trained turn: the engine's prompt and the text up to the end of the turn, which begins with it."""

    prompt: str
    text: str


class Renderer:
    """Renders examples with one tokenizer. `stop_token_ids`: further ids that end a turn (generation_config)."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template_kwargs: Mapping[str, Any] | None = None,
        stop_token_ids: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._template_kwargs = dict(template_kwargs or {})
        self._stop_token_ids = tuple(stop_token_ids)

    def render(self, example: ChatExample | CompletionExample) -> list[Rendered]:
        """Usually one sequence; several where the template forbids it. Raises RenderError."""
        if isinstance(example, CompletionExample):
            return [self._completion(example)]
        return self._chat(example)

    def render_pair(self, example: PreferenceExample) -> RenderedPair:
        """The two continuations of one prompt, only the continuation trained. Raises RenderError."""
        sides = (example.preferred, example.non_preferred)
        return RenderedPair(*(self._side(example, {**side, "role": "assistant"}) for side in sides))

    def render_any(self, example: Example) -> list[Rendered]:
        """All sequences of an example of any kind: for counting tokens and showing masks."""
        if isinstance(example, PreferenceExample):
            pair = self.render_pair(example)
            return [pair.preferred, pair.non_preferred]
        return self.render(example)

    def chat_prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = (), line: int = 0) -> str:
        """The text that the engine's chat endpoint tokenises for these messages."""
        return self._apply(messages, tools, line, generation_prompt=True)

    def unread_kwargs(self) -> list[str]:
        """Template kwargs whose names stand nowhere in the template."""
        template = str(self._tokenizer.chat_template)
        return [name for name in self._template_kwargs if not re.search(rf"\b{re.escape(name)}\b", template)]

    def text_of(self, token_id: int) -> str:
        """One token as text, special ones included."""
        return self._tokenizer.decode([token_id])

    @cached_property
    def turn_end_ids(self) -> frozenset[int]:
        """Ids that end an assistant turn: eos, the given stop ids, and what the template writes after an answer."""
        ids = set(self._stop_token_ids)
        if self._tokenizer.eos_token_id is not None:
            ids.add(self._tokenizer.eos_token_id)
        return frozenset(ids | self._template_end_ids())

    def _template_end_ids(self) -> set[int]:
        """The first special token that the template puts after an assistant message, if any."""
        probe = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _SENTINEL}]
        try:
            text = self._apply(probe, (), 0, generation_prompt=False)
        except RenderError:
            return set()
        after = self._encode(text.rpartition(_SENTINEL)[2])
        special = [i for i in after if not self._tokenizer.decode([i], skip_special_tokens=True)]
        return set(special[:1])

    @cached_property
    def _keeps_developer(self) -> bool:
        """vLLM's own test (`_detect_developer_role_support`)."""
        template = str(self._tokenizer.chat_template)
        return '"developer"' in template or "'developer'" in template

    @cached_property
    def _wants_parts(self) -> bool:
        """True for a template that drops string content and shows a list of text parts."""
        tokenizer, probe = self._tokenizer, {"role": "user", "content": _SENTINEL}
        try:
            return _SENTINEL not in tokenizer.apply_chat_template([probe], tokenize=False, **self._template_kwargs)
        except Exception:  # the template is a foreign program; a real example will show what it refuses
            return False

    def _apply(self, messages: Sequence[Message], tools: Sequence[Tool], line: int, *, generation_prompt: bool) -> str:
        rewritten = conversation(messages, keeps_developer=self._keeps_developer)
        if self._wants_parts:
            rewritten = [{**m, "content": _parts(m["content"])} for m in rewritten]
        try:
            text = self._tokenizer.apply_chat_template(
                rewritten,
                tools=tool_dicts(tools),
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **self._template_kwargs,
            )
        except Exception as error:  # the template is a foreign program: it may raise anything
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise _refuse(line, "template_error", f"is refused by the model's chat template: {reason}.") from error
        return str(text)

    def _encode(self, text: str) -> list[int]:
        """As the chat endpoint: the template has written all special tokens itself."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _chat(self, example: ChatExample) -> list[Rendered]:
        numbers = [n for n, message in enumerate(example.messages) if message_weight(message)]
        if not numbers:
            raise _refuse(example.line, "no_trainable_tokens", "has no assistant message that is trained.")
        if numbers[0] == 0:
            reason = "begins with a trained assistant message: put a message before it, or set its weight to 0."
            raise _refuse(example.line, "nothing_before", reason)
        turns = [self._turn(example.messages, n, example.tools, example.line) for n in numbers]
        together = self._together(turns) if len(turns) > 1 else None
        return [together] if together else [self._alone(turn, example.line) for turn in turns]

    def _side(self, example: PreferenceExample, side: Message) -> Rendered:
        messages = (*example.messages, side)
        return self._alone(self._turn(messages, len(messages) - 1, example.tools, example.line), example.line)

    def _turn(self, messages: Sequence[Message], number: int, tools: Sequence[Tool], line: int) -> _Turn:
        prompt = self.chat_prompt(messages[:number], tools, line)
        text = self._apply(messages[: number + 1], tools, line, generation_prompt=False)
        if not text.startswith(prompt):
            reason = (
                f"message {number + 1} is rendered differently by the chat template than the prompt before it; "
                "set chat_template_kwargs (such as enable_thinking) so that both agree."
            )
            raise _refuse(line, "unstable_template", reason)
        return _Turn(prompt, text)

    def _together(self, turns: Sequence[_Turn]) -> Rendered | None:
        """All turns in one sequence, or None when some prompt would not be what the engine renders."""
        token_ids = self._encode(turns[-1].text)
        weights = [0.0] * len(token_ids)
        end = 0
        for turn in turns:
            prompt, text = self._encode(turn.prompt), self._encode(turn.text)
            if token_ids[: len(prompt)] != prompt or token_ids[: len(text)] != text:
                return None
            length = self._written(text[len(prompt) :])
            if length is None:
                return None
            end = len(prompt) + length
            weights[len(prompt) : end] = [1.0] * length
        return Rendered(token_ids[:end], weights[:end])

    def _alone(self, turn: _Turn, line: int) -> Rendered:
        prompt, text = self._encode(turn.prompt), self._encode(turn.text)
        written = self._split(prompt, text, turn.text[len(turn.prompt) :], line)
        length = self._written(written)
        if length is None:
            # The template ends turns with plain text: without eos the served model would never stop.
            return self._sequence(prompt, self._with_eos(written), line)
        return self._sequence(prompt, written[:length], line)

    def _completion(self, example: CompletionExample) -> Rendered:
        """As the completions endpoint: the tokenizer adds its special tokens in front."""
        prompt = list(self._tokenizer.encode(example.prompt, add_special_tokens=True))
        text = list(self._tokenizer.encode(example.prompt + example.completion, add_special_tokens=True))
        written = self._split(prompt, text, example.completion, example.line)
        return self._sequence(prompt, self._with_eos(written), example.line)

    def _split(self, prompt: list[int], text: list[int], rest: str, line: int) -> list[int]:
        """The tokens after the prompt. Where a token straddles the border, `rest` is tokenised alone and checked."""
        if text[: len(prompt)] == prompt:
            return text[len(prompt) :]
        written = self._encode(rest)
        if self._tokenizer.decode(prompt + written) != self._tokenizer.decode(text):
            raise _refuse(line, "unstable_boundary", "cannot be cut into tokens where the answer begins.")
        return written

    def _written(self, token_ids: Sequence[int]) -> int | None:
        """How many of a turn's tokens the model writes itself: up to the turn end; None without a turn end."""
        ends = [i for i, token in enumerate(token_ids) if token in self.turn_end_ids]
        return ends[-1] + 1 if ends else None

    def _with_eos(self, token_ids: list[int]) -> list[int]:
        eos = self._tokenizer.eos_token_id
        if eos is None or token_ids[-1:] == [eos]:
            return token_ids
        return [*token_ids, eos]

    def _sequence(self, prompt: list[int], written: list[int], line: int) -> Rendered:
        if not written:
            raise _refuse(line, "no_trainable_tokens", "has no token to train after rendering.")
        if not prompt:
            raise _refuse(line, "empty_prompt", "has no token before the first trained one.")
        return Rendered(prompt + written, [0.0] * len(prompt) + [1.0] * len(written))


def _parts(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}] if content else []


def _refuse(line: int, check: str, reason: str) -> RenderError:
    text = f"Invalid file format. Example {line} {reason}"
    return RenderError(text, param="training_file", details={"line": line, "check": check})
