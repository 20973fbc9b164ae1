"""The three kinds of training examples, as checked JSON. `line` is the line of the source file, starting at 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Message = dict[str, Any]
Tool = dict[str, Any]
Kind = Literal["chat", "completion", "preference"]


@dataclass(frozen=True, slots=True)
class ChatExample:
    """A conversation as it stands in the file; at least one assistant message has weight 1."""

    line: int
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class CompletionExample:
    line: int
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class PreferenceExample:
    """`preferred` and `non_preferred` are assistant messages that could follow `messages`."""

    line: int
    messages: tuple[Message, ...]
    preferred: Message
    non_preferred: Message
    tools: tuple[Tool, ...] = ()


Example = ChatExample | CompletionExample | PreferenceExample


def kind_of(example: Example) -> Kind:
    match example:
        case ChatExample():
            return "chat"
        case CompletionExample():
            return "completion"
        case PreferenceExample():
            return "preference"


def message_weight(message: Message) -> int:
    """1 when the message is trained: an assistant message whose `weight` is missing, null or 1."""
    if message.get("role") != "assistant":
        return 0
    weight = message.get("weight")
    return 1 if weight is None else int(weight)
