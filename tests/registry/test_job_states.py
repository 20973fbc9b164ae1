from __future__ import annotations

from typing import get_args

import pytest
from tunedock_api.errors import BadInput
from tunedock_registry.job_states import FINAL, HELD, MOVES, Action, answer, may_move, retry_delay_s
from tunedock_registry.records import JobStatus

STATUSES: tuple[JobStatus, ...] = get_args(JobStatus)
UNFINISHED = [status for status in STATUSES if status not in FINAL]


def test_every_status_has_its_moves() -> None:
    assert set(MOVES) == set(STATUSES)
    assert set(UNFINISHED) >= HELD


def test_a_finished_job_never_moves() -> None:
    assert not any(may_move(old, new) for old in FINAL for new in STATUSES)


def test_only_a_running_job_succeeds() -> None:
    assert [old for old in STATUSES if may_move(old, "succeeded")] == ["running"]


def test_only_a_queued_job_starts() -> None:
    assert [old for old in STATUSES if may_move(old, "running")] == ["queued"]


@pytest.mark.parametrize("status", UNFINISHED)
def test_any_unfinished_job_can_be_cancelled_and_can_fail(status: JobStatus) -> None:
    assert answer("ftjob-1", status, True, "cancel") == "cancelled"
    assert may_move(status, "failed")


@pytest.mark.parametrize("status", ["validating_files", "queued", "running"])
def test_waiting_and_running_jobs_can_be_paused(status: JobStatus) -> None:
    assert answer("ftjob-1", status, True, "pause") == "paused"


def test_a_paused_job_resumes_to_where_it_was() -> None:
    assert answer("ftjob-1", "paused", True, "resume") == "queued"
    assert answer("ftjob-1", "paused", False, "resume") == "validating_files"


@pytest.mark.parametrize(
    ("status", "action"),
    [(status, action) for status in FINAL for action in get_args(Action)]
    + [("paused", "pause")]
    + [(status, "resume") for status in UNFINISHED if status != "paused"],
)
def test_every_other_request_is_refused_with_the_status(status: JobStatus, action: Action) -> None:
    with pytest.raises(BadInput, match=f"ftjob-1 is {status}") as caught:
        answer("ftjob-1", status, True, action)
    assert (caught.value.code, caught.value.kind.http_status) == ("invalid_state", 400)


def test_delays_between_tries_grow_to_a_minute() -> None:
    assert [retry_delay_s(n) for n in range(1, 9)] == [2, 4, 8, 16, 32, 60, 60, 60]
