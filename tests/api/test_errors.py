"""The error tree and its table are one thing, and complete."""

from __future__ import annotations

import pickle
import re

import grpc
import pytest
import tunedock_api.errors as errors
from tunedock.wire_errors import class_for_status, from_body, from_code
from tunedock_api.errors import CODES, BadInput, Internal, NotFound, TuneDockError, model_not_found

BRANCHES = TuneDockError.__subclasses__()


def test_the_docstring_draws_every_branch_of_the_tree() -> None:
    drawn = set(re.findall(r"── (\w+)", errors.__doc__ or ""))
    assert drawn == {branch.__name__ for branch in BRANCHES}


@pytest.mark.parametrize("branch", BRANCHES, ids=lambda branch: branch.__name__)
def test_every_branch_has_a_default_code_whose_status_leads_back_to_it(branch: type[TuneDockError]) -> None:
    assert class_for_status(CODES[branch.default_code].http_status) is branch


@pytest.mark.parametrize("code", CODES)
def test_every_code_arrives_as_one_branch_of_the_tree(code: str) -> None:
    error = from_code(code, "what happened")
    assert type(error) in BRANCHES
    assert error.code == code
    assert error.kind is CODES[code]


@pytest.mark.parametrize("kind", CODES.values(), ids=lambda kind: kind.code)
def test_every_row_names_a_real_grpc_status_and_an_http_error(kind: errors.ErrorKind) -> None:
    assert hasattr(grpc.StatusCode, kind.grpc_status)
    assert 400 <= kind.http_status < 600
    assert not kind.retry or kind.http_status in (429, 503)


def test_an_error_survives_the_wire_body() -> None:
    sent = errors.Conflict("alias moved", "alias_conflict", "expected_revision", None, {"revision": 4})
    assert from_body(412, sent.body()["error"]) == sent


def test_an_error_survives_pickling() -> None:
    sent = BadInput("n must be at least 1, not 0.", param="n", details={"minimum": 1})
    back = pickle.loads(pickle.dumps(sent))  # noqa: S301
    assert back == sent
    assert str(back) == sent.message


def test_the_body_always_has_the_four_keys_of_openai() -> None:
    assert BadInput("no").body() == {
        "error": {"message": "no", "type": "invalid_request_error", "param": None, "code": "invalid_request"}
    }


def test_an_unknown_code_of_a_newer_server_keeps_its_branch_by_status() -> None:
    error = from_body(404, {"message": "gone", "code": "code_of_the_future"})
    assert isinstance(error, NotFound)
    assert error.message == "gone"


@pytest.mark.parametrize("body", [None, "Bad Gateway", {"detail": "x"}, []])
def test_a_proxys_own_answer_still_arrives_in_the_tree(body: object) -> None:
    error = from_body(502, body)
    assert isinstance(error, errors.Unavailable)
    assert "502" in error.message


def test_an_unknown_job_error_is_internal_and_keeps_its_text() -> None:
    error = from_code("code_of_the_future", "why")
    assert isinstance(error, Internal)
    assert error.message == "why"


def test_a_very_long_model_name_is_cut_in_the_message() -> None:
    assert len(model_not_found("x" * 10_000).message) < 300
