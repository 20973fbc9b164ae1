"""client.models"""

from __future__ import annotations

from collections.abc import Callable

import openai
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from .conftest import finish


def test_list_holds_the_base_and_every_tuned_model_in_one_page(client: OpenAI, model: str, done: FineTuningJob) -> None:
    models = {one.id: one for one in client.models.list()}
    assert models[model].object == "model"
    assert done.fine_tuned_model in models
    assert (models[str(done.fine_tuned_model)].model_extra or {})["parent"] == model
    assert all(isinstance(one.created, int) and one.owned_by for one in models.values())


def test_retrieve(client: OpenAI, done: FineTuningJob) -> None:
    assert client.models.retrieve(str(done.fine_tuned_model)).id == done.fine_tuned_model
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("no-such-model")
    assert caught.value.code == "model_not_found"


def test_delete_takes_a_tuned_model_away_and_never_the_base(
    client: OpenAI, model: str, start: Callable[..., FineTuningJob]
) -> None:
    job = finish(client, start(epochs=1, suffix="doomed"))
    name = str(job.fine_tuned_model)
    gone = client.models.delete(name)
    assert (gone.id, gone.object, gone.deleted) == (name, "model", True)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(name)
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete(model)
