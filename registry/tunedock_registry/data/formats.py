"""JSONL training files: the three formats, checked completely, in one pass and flat memory.

Formats (OpenAI, `FineTuneChatRequestInput` and `FineTunePreferenceRequestInput`; prompt/completion from the older API):

    chat         {"messages": […], "tools"?, "parallel_tool_calls"?, "functions"?}
    completion   {"prompt": str, "completion": str}
    preference   {"input": {"messages", "tools"?, "parallel_tool_calls"?}, "preferred_output": [m], "non_preferred_output": [m]}
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from tunedock_api.errors import BadInput

from .checks import Findings, check_declaration, check_message, check_messages, check_tools, check_trainable
from .examples import ChatExample, CompletionExample, Example, Kind, Message, PreferenceExample, Tool, kind_of
from .lines import JsonLine, LineError, json_lines

MIN_TRAINING_EXAMPLES = 10
MAX_LISTED = 100
_SHOWN_IN_STATUS = 20
_PREFERRED = ("preferred_output", "preferred_completion")
_NON_PREFERRED = ("non_preferred_output", "non_preferred_completion")
_CHAT_KEYS = {"messages", "tools", "parallel_tool_calls", "functions"}
_INPUT_KEYS = _CHAT_KEYS - {"functions"}
_MARKS: dict[Kind, tuple[str, ...]] = {
    "chat": ("messages",),
    "completion": ("prompt", "completion"),
    "preference": ("input", *_PREFERRED, *_NON_PREFERRED),
}


@dataclass(frozen=True)
class FileReport:
    """What is wrong with a file. The listings hold at most `MAX_LISTED` findings, the counts all of them."""

    kind: Kind | None
    num_lines: int
    num_examples: int
    num_errors: int = 0
    num_bad_lines: int = 0
    errors: tuple[LineError, ...] = ()
    num_warnings: int = 0
    warnings: tuple[LineError, ...] = ()

    @property
    def ok(self) -> bool:
        return self.num_errors == 0

    def status_details(self) -> str | None:
        """For `status_details` of a file: one line an error, the first in OpenAI's words; None when there is none."""
        if self.ok:
            return None
        shown = [error.message for error in self.errors[:_SHOWN_IN_STATUS]]
        more = self.num_errors - len(shown)
        return "\n".join([*shown, f"… and {more} more errors; see the file's report"] if more else shown)

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "kind": self.kind,
            "num_lines": self.num_lines,
            "num_examples": self.num_examples,
            "num_errors": self.num_errors,
            "num_bad_lines": self.num_bad_lines,
            "errors": [error.as_dict() for error in self.errors],
            "num_warnings": self.num_warnings,
            "warnings": [warning.as_dict() for warning in self.warnings],
        }


@dataclass(frozen=True)
class Scanned:
    """One non-blank line: an example, or the errors that keep it from being one."""

    line: int
    example: Example | None
    errors: tuple[LineError, ...] = ()
    warnings: tuple[LineError, ...] = ()


def validate_file(stream: BinaryIO, purpose: str = "fine-tune") -> FileReport:
    """Reads the whole stream and reports every error. Files of another purpose than `fine-tune` are not looked into."""
    if purpose != "fine-tune":
        return FileReport(None, 0, 0)
    tally = Tally()
    for scanned in scan(stream):
        tally.add(scanned)
    return tally.report()


def scan(stream: BinaryIO) -> Iterator[Scanned]:
    """Yields every non-blank line, checked; the first good line fixes the format of the file. Never raises on data."""
    expected: Kind | None = None
    for line in json_lines(stream):
        if isinstance(line, LineError):
            yield Scanned(line.line, None, (line,))
            continue
        scanned = _check_line(line, expected)
        if expected is None and scanned.example is not None:
            expected = kind_of(scanned.example)
        yield scanned


def read_examples(stream: BinaryIO) -> Iterator[Example]:
    """The examples of a file that was found valid. Raises BadInput (invalid_file_format) at the first bad line."""
    for scanned in scan(stream):
        if scanned.example is None:
            raise BadInput(scanned.errors[0].message, "invalid_file_format")
        yield scanned.example


def too_few_examples(num_examples: int) -> BadInput | None:
    """OpenAI's error for a training file with fewer than ten examples; None when there are enough."""
    if num_examples >= MIN_TRAINING_EXAMPLES:
        return None
    text = f"Training file has {num_examples} example(s), but must have at least {MIN_TRAINING_EXAMPLES} examples"
    return BadInput(text, "invalid_n_examples", param="training_file")


def job_failure(report: FileReport, param: str = "training_file") -> BadInput | None:
    """The error of a job whose file is bad, in OpenAI's words; None for a good file.

    `param` is `training_file` or `validation_file`; only the former needs ten examples.
    """
    if report.ok:
        return too_few_examples(report.num_examples) if param == "training_file" else None
    first = report.errors[0]
    what = param.replace("_", " ")
    if first.code in _SHAPE_CODES:
        return BadInput(
            f"The job failed due to a file format error in the {what}. {first.message}", "invalid_file_format", param
        )
    return BadInput(f"The job failed due to an invalid {what}. {first.message}", "invalid_training_file", param)


_SHAPE_CODES = {"extra_key", "missing_key", "invalid_json", "not_a_dictionary", "invalid_encoding", "mixed_formats"}


@dataclass
class Tally:
    """Sums up scanned lines."""

    kind: Kind | None = None
    num_lines: int = 0
    num_examples: int = 0
    num_errors: int = 0
    num_bad_lines: int = 0
    num_warnings: int = 0
    errors: list[LineError] = field(default_factory=list)
    warnings: list[LineError] = field(default_factory=list)

    def add(self, scanned: Scanned) -> None:
        self.num_lines += 1
        self.num_errors += len(scanned.errors)
        self.num_bad_lines += bool(scanned.errors)
        self.num_warnings += len(scanned.warnings)
        self.errors.extend(scanned.errors[: MAX_LISTED - len(self.errors)])
        self.warnings.extend(scanned.warnings[: MAX_LISTED - len(self.warnings)])
        if scanned.example is not None:
            self.num_examples += 1
            self.kind = self.kind or kind_of(scanned.example)

    def report(self) -> FileReport:
        if self.num_lines == 0:
            empty = LineError(1, "", "empty_file", "Invalid file format. The file holds no examples.")
            return FileReport(None, 0, 0, num_errors=1, errors=(empty,))
        return FileReport(
            self.kind,
            self.num_lines,
            self.num_examples,
            self.num_errors,
            self.num_bad_lines,
            tuple(self.errors),
            self.num_warnings,
            tuple(self.warnings),
        )


def _check_line(line: JsonLine, expected: Kind | None) -> Scanned:
    found = Findings(line.line)
    kind = _kind(line.value, expected)
    if expected is not None and kind != expected:
        found.error("", "mixed_formats", f"is a {kind} example in a file of {expected} examples.")
    example = _BUILDERS[kind](found, line.value)
    return Scanned(line.line, None if found.errors else example, tuple(found.errors), tuple(found.warnings))


def _kind(value: dict[str, Any], expected: Kind | None) -> Kind:
    for kind, marks in _MARKS.items():
        if any(mark in value for mark in marks):
            return kind
    return expected or "chat"


def _check_keys(found: Findings, value: dict[str, Any], allowed: set[str], path: str = "") -> None:
    for key in sorted(value.keys() - allowed):
        found.error(f"{path}{key[:64]}", "extra_key", f'contains an extra "{key[:64]}".')


def _chat(found: Findings, value: dict[str, Any]) -> Example | None:
    _check_keys(found, value, _CHAT_KEYS)
    if "messages" not in value:
        found.error("messages", "missing_key", "is missing key 'messages'.")
        return None
    tools = _tools(found, value)
    check_messages(found, value["messages"], "messages", tools)
    if isinstance(value["messages"], list) and value["messages"]:
        check_trainable(found, value["messages"], "messages")
    return None if found.errors else ChatExample(found.line, tuple(value["messages"]), tools)


def _tools(found: Findings, value: dict[str, Any], path: str = "") -> tuple[Tool, ...]:
    """The declared tools; deprecated `functions` become tools."""
    check_tools(found, value.get("tools"), f"{path}tools")
    parallel = value.get("parallel_tool_calls")
    if parallel is not None and not isinstance(parallel, bool):
        found.error(
            f"{path}parallel_tool_calls", "invalid_type", "has 'parallel_tool_calls' that is not true or false."
        )
    functions = value.get("functions")
    if functions is None:
        return tuple(value["tools"]) if isinstance(value.get("tools"), list) else ()
    if not isinstance(functions, list) or not 1 <= len(functions) <= 128:
        found.error(f"{path}functions", "invalid_tools", "has 'functions' that is not a list of 1 to 128 functions.")
        return ()
    for index, function in enumerate(functions):
        check_declaration(found, function, f"{path}functions[{index}]")
    return tuple({"type": "function", "function": function} for function in functions)


def _completion(found: Findings, value: dict[str, Any]) -> Example | None:
    _check_keys(found, value, {"prompt", "completion"})
    for key in ("prompt", "completion"):
        if key not in value:
            found.error(key, "missing_key", f"is missing key '{key}'.")
        elif not isinstance(value[key], str):
            found.error(key, "invalid_type", f"has a '{key}' that is not a string.")
        elif not value[key]:
            found.error(key, "empty_content", f"has an empty '{key}'.")
    return None if found.errors else CompletionExample(found.line, value["prompt"], value["completion"])


def _preference(found: Findings, value: dict[str, Any]) -> Example | None:
    _check_keys(found, value, {"input", *_PREFERRED, *_NON_PREFERRED})
    messages, tools = _preference_input(found, value)
    preferred = _side(found, value, _PREFERRED)
    other = _side(found, value, _NON_PREFERRED)
    if found.errors or preferred is None or other is None:
        return None
    if _said(preferred) == _said(other):
        found.error("", "identical_outputs", "has the same preferred and non-preferred output.")
        return None
    return PreferenceExample(found.line, messages, preferred, other, tools)


def _preference_input(found: Findings, value: dict[str, Any]) -> tuple[tuple[Message, ...], tuple[Tool, ...]]:
    source = value.get("input")
    if "input" not in value:
        found.error("input", "missing_key", "is missing key 'input'.")
        return (), ()
    if not isinstance(source, dict):
        found.error("input", "invalid_type", "has an 'input' that is not a dictionary.")
        return (), ()
    _check_keys(found, source, _INPUT_KEYS, "input.")
    tools = _tools(found, source, "input.")
    messages = source.get("messages")
    check_messages(found, messages, "input.messages", tools)
    if found.errors or not isinstance(messages, list):
        return (), tools
    if messages[-1]["role"] not in ("user", "tool", "function"):
        found.error("input.messages", "input_ends_wrong", "has an input that does not end with a user or tool message.")
    return tuple(messages), tools


def _side(found: Findings, value: dict[str, Any], names: tuple[str, str]) -> Message | None:
    """The single assistant message under either spelling."""
    present = [name for name in names if name in value]
    if not present:
        found.error(names[0], "missing_key", f"is missing key '{names[0]}'.")
        return None
    if len(present) == 2:
        found.error(names[1], "extra_key", f'contains an extra "{names[1]}".')
        return None
    name, output = present[0], value[present[0]]
    if not isinstance(output, list) or len(output) != 1:
        found.error(name, "invalid_output", f"must have exactly one message in '{name}'.")
        return None
    check_message(found, output[0], f"{name}[0]", 0)
    if isinstance(output[0], dict) and output[0].get("role", "assistant") != "assistant":
        found.error(f"{name}[0].role", "invalid_output", f"has a message in '{name}' whose role is not 'assistant'.")
    return output[0] if isinstance(output[0], dict) else None


def _said(message: Message) -> tuple[Any, ...]:
    return tuple(message.get(key) for key in ("content", "tool_calls", "function_call", "refusal"))


_BUILDERS = {"chat": _chat, "completion": _completion, "preference": _preference}
