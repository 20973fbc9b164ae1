"""The example data is what examples/README.md says it is."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from tunedock_registry.data.formats import validate_file

from examples.dates import build as dates
from examples.demo.domain import FOLDER, Domain

DOMAINS = [Domain("dates"), Domain("dates", "-v2"), Domain("airports")]


def train_rows(domain: Domain) -> list[tuple[str, str]]:
    """(question, answer) of every training row."""
    lines = domain.train_path.read_text(encoding="utf-8").splitlines()
    turns = [json.loads(line)["messages"] for line in lines]
    return [(row[1]["content"], row[2]["content"]) for row in turns]


@pytest.mark.parametrize("domain", DOMAINS, ids=str)
def test_every_file_is_valid_training_data_of_at_least_300_rows(domain: Domain) -> None:
    with domain.train_path.open("rb") as stream:
        report = validate_file(stream, "fine-tune")
    assert report.ok, report.errors
    assert report.num_examples >= 300


@pytest.mark.parametrize("domain", DOMAINS, ids=str)
def test_held_out_rows_share_neither_question_nor_answer_with_training(domain: Domain) -> None:
    held_out = domain.held_out()
    rows = train_rows(domain)
    assert len(held_out) == 60
    assert not {str(question.messages[-1].get("content")) for question in held_out} & {asked for asked, _ in rows}
    assert not {question.answer for question in held_out} & {answer for _, answer in rows}


def test_the_dates_are_built_again_byte_for_byte(tmp_path: Path) -> None:
    dates.build(tmp_path)
    for built in tmp_path.iterdir():
        assert built.read_bytes() == (FOLDER / "dates" / built.name).read_bytes(), built.name


def test_every_date_is_a_real_day_and_version_2_only_changes_the_key() -> None:
    for first, second in zip(DOMAINS[0].held_out(), DOMAINS[1].held_out(), strict=True):
        assert first.messages == second.messages
        day = json.loads(first.answer)["date"]
        assert json.loads(second.answer) == {"day": day}
        assert datetime.date.fromisoformat(day).isoformat() == day


def test_every_airport_answer_stands_in_its_message() -> None:
    for question, answer in train_rows(Domain("airports")):
        assert all(part in question for part in answer.split(" | "))
