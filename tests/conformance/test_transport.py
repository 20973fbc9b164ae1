"""Retries, error bodies, request ids, URLs."""

from __future__ import annotations

from collections.abc import Callable

import openai
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from .conftest import Wire


def test_a_conflict_that_repeating_cannot_mend_is_sent_once(
    client: OpenAI, start: Callable[..., FineTuningJob], wire: Wire
) -> None:
    key = {"Idempotency-Key": "conformance-conflict"}
    job = start(seed=11, extra_headers=key)
    wire.clear()
    with pytest.raises(openai.ConflictError) as caught:
        start(seed=12, extra_headers=key)
    assert len(wire.requests) == 1
    assert caught.value.response.headers["x-should-retry"] == "false"
    client.fine_tuning.jobs.cancel(job.id)


def test_a_blindly_retried_create_makes_one_job(client: OpenAI, start: Callable[..., FineTuningJob]) -> None:
    first = start(seed=13)
    again = start(seed=13, extra_headers={"x-stainless-retry-count": "1"})
    assert first.id == again.id
    client.fine_tuning.jobs.cancel(first.id)


def test_a_forbidden_transition_is_not_retried(client: OpenAI, done: FineTuningJob, wire: Wire) -> None:
    wire.clear()
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.cancel(done.id)
    assert len(wire.requests) == 1


@pytest.mark.parametrize(
    ("call", "kind", "code", "param"),
    [
        (lambda c: c.files.retrieve("file-nope"), openai.NotFoundError, "not_found", "id"),
        (lambda c: c.fine_tuning.jobs.retrieve("ftjob-x"), openai.NotFoundError, "fine_tune_not_found", "fine_tune_id"),
        (lambda c: c.models.retrieve("nope"), openai.NotFoundError, "model_not_found", None),
        (lambda c: c.fine_tuning.jobs.list(limit=0), openai.BadRequestError, "invalid_request", "limit"),
        (
            lambda c: c.fine_tuning.jobs.create(model="gpt-4o", training_file="file-x"),
            openai.BadRequestError,
            "model_not_available",
            None,
        ),
        (
            lambda c: c.chat.completions.create(model="nope", messages=[{"role": "user", "content": "x"}]),
            openai.NotFoundError,
            "model_not_found",
            None,
        ),
    ],
)
def test_every_exception_carries_message_code_param_type_and_request_id(
    client: OpenAI, call: Callable[[OpenAI], object], kind: type[openai.APIStatusError], code: str, param: str | None
) -> None:
    with pytest.raises(kind) as caught:
        call(client)
    error = caught.value
    assert (error.code, error.param, error.type) == (code, param, "invalid_request_error")
    assert error.request_id
    assert error.message


def test_success_carries_a_request_id_too(client: OpenAI) -> None:
    page = client.models.list()
    assert page._request_id


def test_an_unknown_route_is_an_ordinary_error(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.get("/nope", cast_to=object)
    assert caught.value.code == "not_found"


def test_names_with_slashes_spaces_and_colons_survive_the_url(client: OpenAI) -> None:
    for name in ("ft:org/model:a::b", "a b", "a%2Fb", "x/y/z"):
        for call in (client.models.retrieve, client.models.delete):
            with pytest.raises(openai.NotFoundError) as caught:
                call(name)
            assert name in caught.value.message or call == client.models.delete
        with pytest.raises(openai.NotFoundError):
            client.fine_tuning.checkpoints.permissions.list(name)
