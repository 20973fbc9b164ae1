from __future__ import annotations

import io
import json
import tracemalloc
from typing import Any

import pytest
from support.datasets import assistant, call, chat, facts, jsonl, stream, tool, user
from support.models import default_model_path
from tunedock_registry.data.estimate import BaseSize, cpu_tokens_per_s, memory_bytes
from tunedock_registry.data.hyperparameters import DataFacts
from tunedock_registry.data.knobs import Knobs, parse_method
from tunedock_registry.data.render import Renderer
from tunedock_registry.data.report import Plan, build_report
from tunedock_registry.models.tokenizer import load_renderer

MODULES = {
    f"model.layers.{n}.{name}": shape
    for n in range(30)
    for name, shape in {
        "self_attn.q_proj": (576, 576),
        "self_attn.k_proj": (576, 192),
        "self_attn.v_proj": (576, 192),
        "self_attn.o_proj": (576, 576),
        "mlp.gate_proj": (576, 1536),
        "mlp.up_proj": (576, 1536),
        "mlp.down_proj": (1536, 576),
    }.items()
}
SMOLLM = BaseSize(MODULES, 49_152, 576)
PLAN = Plan(parse_method(None), Knobs(), DataFacts(0, 576, "llama", 64), SMOLLM, tokens_per_s=500.0)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return load_renderer(default_model_path())


def test_a_report_is_json_and_holds_every_part(renderer: Renderer) -> None:
    report = build_report(stream(facts(30)), stream(facts(3)), renderer, max_length=64, plan=PLAN)
    body = json.loads(json.dumps(report.as_dict()))
    assert body["ok"] is True
    assert body["num_examples"] == 30
    assert body["overlap"]["exact"] == 3
    assert body["overlap"]["pairs"][0] == [1, 1, 1.0]
    assert body["tokens"]["sequences"] == 30
    assert sum(body["tokens"]["histogram"].values()) == 30
    assert body["truncation"]["count"] == 0
    assert len(body["masks"]) == 3


def test_without_a_tokenizer_the_parts_that_need_one_are_null() -> None:
    body = build_report(stream(facts(10))).as_dict()
    assert (body["tokens"], body["truncation"], body["estimate"], body["overlap"]) == (None, None, None, None)
    assert body["duplicates"]["exact"] == 0


def test_the_mask_view_shows_each_token_with_its_fate(renderer: Renderer) -> None:
    report = build_report(stream([chat(user("Hi"), assistant("Hello!"))] * 10), renderer=renderer, num_masks=1)
    (mask,) = report.masks
    assert "".join(token.text for token in mask.tokens if token.trained) == "Hello!<|im_end|>"
    assert "".join(token.text for token in mask.tokens).endswith("assistant\nHello!<|im_end|>")
    assert report.tokens is not None
    assert report.tokens.trained == 10 * sum(token.trained for token in mask.tokens)


def test_duplicates_are_listed_with_the_line_they_repeat() -> None:
    rows = [*facts(12), facts(12)[4]]
    duplicates = build_report(stream(rows)).duplicates
    assert (duplicates.exact, duplicates.near, duplicates.pairs) == (1, 0, ((13, 5, 1.0),))


def test_one_prompt_with_two_answers_is_a_contradiction() -> None:
    rows = [*facts(10), chat(user("What is 1 times 4?"), assistant("five"))]
    assert build_report(stream(rows)).contradicting_prompts == 1


def test_what_is_too_long_is_counted_with_its_lines(renderer: Renderer) -> None:
    rows = [*facts(10), chat(user("word " * 200), assistant("ok"))]
    truncation = build_report(stream(rows), renderer=renderer, max_length=128).truncation
    assert truncation is not None
    assert (truncation.max_length, truncation.count, truncation.lines) == (128, 1, (11,))


def test_what_the_template_refuses_is_listed_apart_from_the_files_own_errors(renderer: Renderer) -> None:
    first = chat(assistant("I begin."), user("Go on"), assistant("Yes"))
    report = build_report(stream([*facts(9), first]), renderer=renderer)
    assert report.template is not None
    assert [(error.line, error.code) for error in report.template.errors] == [(10, "nothing_before")]
    assert (report.template.count, report.file.ok, report.ok) == (1, True, False)


def test_broken_tool_arguments_are_warnings() -> None:
    schema = tool("f", type="object", required=["x"])
    rows = [*facts(10), chat(user("a"), assistant(None, tool_calls=[call("f")]), tools=[schema])]
    report = build_report(stream(rows))
    assert report.ok
    assert [(warning.line, warning.code) for warning in report.file.warnings] == [(11, "tool_arguments_mismatch")]


def test_a_prompt_that_ends_with_a_space_is_a_warning() -> None:
    report = build_report(stream([{"prompt": "1+1= ", "completion": "2"}]))
    assert [warning.code for warning in report.file.warnings] == ["prompt_ends_with_space"]


def test_the_good_lines_of_a_bad_file_are_still_counted(renderer: Renderer) -> None:
    report = build_report(io.BytesIO(b"{oops\n" + jsonl(facts(5))), renderer=renderer)
    assert (report.ok, report.file.num_errors, report.file.num_examples) == (False, 1, 5)
    assert report.tokens is not None


def test_the_estimate_follows_the_auto_formulas(renderer: Renderer) -> None:
    report = build_report(stream(facts(600)), renderer=renderer, plan=PLAN)
    assert report.estimate is not None
    assert report.tokens is not None
    assert (report.estimate.n_epochs, report.estimate.batch_size, report.estimate.steps) == (3, 16, 114)
    assert report.estimate.trained_tokens == 3 * report.tokens.trained
    assert report.estimate.seconds == pytest.approx(3 * report.tokens.total / 500)


def test_memory_and_speed_are_of_the_right_size_for_the_default_model() -> None:
    assert SMOLLM.num_parameters == 134_479_872
    assert 1 << 30 < memory_bytes(SMOLLM, 16, 1024) < 4 << 30
    assert 300 < cpu_tokens_per_s(SMOLLM, 2) < 3000


def test_memory_does_not_hold_the_examples() -> None:
    rows: Any = (chat(user(f"{n}".zfill(500) + " word" * 20 + "x" * 60_000), assistant(str(n))) for n in range(150))
    data = io.BytesIO(jsonl(rows))
    tracemalloc.start()
    build_report(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(data.getvalue()) / 4
