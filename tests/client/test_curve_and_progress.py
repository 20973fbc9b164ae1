"""What a person sees while a job runs."""

from __future__ import annotations

import io
import sys
from typing import ClassVar

import pytest
from tunedock.curve import curve, resampled
from tunedock.progress import losses_shown, reporter
from tunedock.types import JobEvent


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def step(number: int, loss: float, total: int = 3) -> JobEvent:
    data = {"step": number, "total_steps": total, "train_loss": loss}
    return JobEvent(
        id=f"e{number}", message=f"Step {number}/{total}: training loss={loss:.2f}", type="metrics", data=data
    )


def test_a_falling_loss_falls_from_left_to_right() -> None:
    lines = curve([4.0, 3.0, 2.0, 1.0], height=4)
    assert lines[0].startswith("   4.000 ┤")
    assert lines[-1].startswith("   1.000 ┤")
    assert [len(line) for line in lines] == sorted(len(line) for line in lines)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_too_few_values_draw_nothing(values: list[float]) -> None:
    assert curve(values) == []


def test_equal_values_draw_a_flat_line() -> None:
    assert curve([2.0, 2.0, 2.0], height=2)[1].endswith("▁▁▁")


def test_many_values_become_means_of_columns() -> None:
    assert resampled([1.0, 3.0, 5.0, 7.0], 2) == [2.0, 6.0]
    assert len(resampled([float(i) for i in range(1000)], 60)) == 60


def test_without_a_terminal_progress_is_plain_lines_and_the_last_step_always_shows() -> None:
    out = io.StringIO()
    with reporter(True, "job", out) as report:
        report.event(JobEvent(id="a", message="Fine-tuning job started"))
        for number in (1, 2, 3):
            report.event(step(number, 1 / number))
    shown = out.getvalue().splitlines()
    assert shown[0] == "Fine-tuning job started"
    assert shown[-1].startswith("Step 3/3")
    assert not any("\x1b" in line for line in shown)


def test_on_a_terminal_progress_is_a_bar_with_losses_and_a_curve() -> None:
    out = Terminal()
    with reporter(True, "job ftjob-1", out) as report:
        report.event(JobEvent(id="a", message="Fine-tuning job started"))
        for number in (1, 2, 3):
            report.event(step(number, 1 / number))
    shown = out.getvalue()
    assert "job ftjob-1" in shown
    assert "train 0.333" in shown
    assert "┤" in shown


class Cell:
    """What IPython offers in a notebook's kernel: an output that can be written again in place."""

    config: ClassVar[dict[str, object]] = {"IPKernelApp": {}}

    def __init__(self) -> None:
        self.texts: list[str] = []

    def get_ipython(self) -> Cell:
        return self

    def display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> Cell:
        assert raw
        assert display_id
        self.texts.append(data["text/plain"])
        return self

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.texts[-1] = data["text/plain"]


def test_in_a_notebook_progress_is_drawn_again_in_place_without_widgets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = Cell()
    monkeypatch.setitem(sys.modules, "IPython", cell)
    monkeypatch.setitem(sys.modules, "IPython.display", cell)
    with reporter(True, "job ftjob-1") as report:
        report.event(JobEvent(id="a", message="Fine-tuning job started"))
        for number in (1, 2, 3):
            report.event(step(number, 1 / number))
    (shown,) = cell.texts
    assert "job ftjob-1" in shown
    assert "3/3" in shown
    assert "train 0.333" in shown
    assert "┤" in shown
    assert "\x1b" not in shown
    assert capsys.readouterr().out == "Fine-tuning job started\n"


def test_no_color_is_respected_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    with reporter(True, "job", out) as report:
        report.event(step(1, 1.0))
    assert "\x1b[3" not in out.getvalue()


def test_a_callable_gets_every_event_and_false_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[JobEvent] = []
    with reporter(seen.append, "job") as report:
        report.event(step(1, 1.0))
    with reporter(False, "job") as report:
        report.event(step(1, 1.0))
    assert [event.id for event in seen] == ["e1"]
    assert capsys.readouterr() == ("", "")


def test_only_measured_losses_are_shown() -> None:
    assert losses_shown({"train_loss": 0.5, "valid_loss": None}) == "train 0.500"
