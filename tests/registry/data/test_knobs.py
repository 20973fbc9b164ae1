from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tunedock_api.errors import BadInput
from tunedock_registry.data.knobs import DpoHyperparameters, Knobs, parse_knobs, parse_method


def supervised(**hyperparameters: Any) -> dict[str, Any]:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


def dpo(**hyperparameters: Any) -> dict[str, Any]:
    return {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}


def test_nothing_asked_means_all_defaults() -> None:
    assert parse_knobs(None) == parse_knobs({}) == Knobs()
    assert parse_method(None).hyperparameters.n_epochs == "auto"


@pytest.mark.parametrize(
    ("knobs", "param"),
    [
        ({"rnak": 8}, "tunedock.rnak"),
        ({"lora": {"rnk": 8}}, "tunedock.lora.rnk"),
        ({"lora": {"rank": 0}}, "tunedock.lora.rank"),
        ({"lora": {"rank": "16"}}, "tunedock.lora.rank"),
        ({"lora": {"alpha": -1}}, "tunedock.lora.alpha"),
        ({"lora": {"dropout": 1}}, "tunedock.lora.dropout"),
        ({"lora": {"target_modules": []}}, "tunedock.lora.target_modules"),
        ({"lora": {"target_modules": "q_proj"}}, "tunedock.lora.target_modules"),
        ({"lora": {"rslora": "yes"}}, "tunedock.lora.rslora"),
        ({"lora": {"rank_pattern": {"q_proj": 513}}}, "tunedock.lora.rank_pattern.q_proj"),
        ({"lora": 3}, "tunedock.lora"),
        ({"schedule": {"type": "exponential"}}, "tunedock.schedule.type"),
        ({"early_stopping": {"patience": 0}}, "tunedock.early_stopping.patience"),
        ({"packing": "yes"}, "tunedock.packing"),
        ({"max_length": 3}, "tunedock.max_length"),
        ({"overlong": "cut"}, "tunedock.overlong"),
        ({"validation_split": 0.9}, "tunedock.validation_split"),
        ({"mixing": {"file-a": 0}}, "tunedock.mixing.file-a"),
        ({"init_from": "support@@1"}, "tunedock.init_from"),
        ({"adapter": "../x"}, "tunedock.adapter"),
        ({"promote": "always"}, "tunedock.promote"),
        ({"sweep": {}}, "tunedock.sweep"),
        ({"sweep": {"learning_rate_multiplier": [1, 0]}}, "tunedock.sweep.learning_rate_multiplier.1"),
        ({"sweep": {"rank": [8, 16]}, "lora": {"rank": 8}}, "tunedock"),
        ({"chat_template_kwargs": {"x": [1]}}, "tunedock.chat_template_kwargs.x"),
        (3, "tunedock"),
    ],
)
def test_a_bad_knob_is_named_by_its_dotted_path(knobs: Any, param: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_knobs(knobs)
    assert caught.value.param == param
    assert f"'{param}'" in caught.value.message


@pytest.mark.parametrize(
    ("method", "param"),
    [
        ({"type": "reinforcement", "reinforcement": {}}, "method.type"),
        ({"type": "dpo", "supervised": {}}, "method"),
        (supervised(n_epochs=0), "method.supervised.hyperparameters.n_epochs"),
        (supervised(n_epochs=51), "method.supervised.hyperparameters.n_epochs"),
        (supervised(n_epochs=True), "method.supervised.hyperparameters.n_epochs"),
        (supervised(batch_size=257), "method.supervised.hyperparameters.batch_size"),
        (supervised(learning_rate_multiplier=0), "method.supervised.hyperparameters.learning_rate_multiplier"),
        (
            supervised(learning_rate_multiplier=float("nan")),
            "method.supervised.hyperparameters.learning_rate_multiplier",
        ),
        (supervised(beta=0.1), "method.supervised.hyperparameters.beta"),
        (dpo(beta=2.1), "method.dpo.hyperparameters.beta"),
        ([], "method"),
    ],
)
def test_a_bad_method_is_named_by_its_dotted_path(method: Any, param: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_method(method)
    assert caught.value.param == param


def test_every_problem_is_in_the_details() -> None:
    with pytest.raises(BadInput) as caught:
        parse_knobs({"a": 1, "lora": {"rank": 0}})
    assert [problem["param"] for problem in caught.value.details["more"]] == ["tunedock.a"]


def test_the_inner_object_of_a_method_may_be_missing() -> None:
    assert parse_method({"type": "dpo"}).hyperparameters == DpoHyperparameters()


def test_deprecated_hyperparameters_are_read_and_may_not_contradict() -> None:
    assert parse_method(None, {"n_epochs": 4}).hyperparameters.n_epochs == 4
    assert parse_method(supervised(n_epochs=4), {"n_epochs": 4}).hyperparameters.n_epochs == 4
    for method in (supervised(n_epochs=5), dpo(n_epochs=4)):
        with pytest.raises(BadInput) as caught:
            parse_method(method, {"n_epochs": 4})
        assert caught.value.param == "hyperparameters.n_epochs"


def test_a_method_is_written_back_as_the_api_shows_it() -> None:
    method = parse_method(dpo(beta=0.5))
    asked = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto", "beta": 0.5}
    assert method.as_body() == dpo(**asked)
    assert method.as_body({"n_epochs": 1}) == dpo(n_epochs=1)


def test_early_stopping_can_be_switched() -> None:
    assert parse_knobs({"early_stopping": False}).early_stopping is None
    assert parse_knobs({"early_stopping": True}) == Knobs()


def test_knobs_survive_a_round_trip_through_json() -> None:
    knobs = parse_knobs({"lora": {"rank": 8, "target_modules": ["q_proj"]}, "sweep": {"rank": [8, 16]}} | {"lora": {}})
    assert parse_knobs(knobs.model_dump(mode="json")) == knobs


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


def refused_field(value: dict[str, Any]) -> str | None:
    try:
        parse_knobs(value)
    except BadInput as error:
        return error.param
    return None


@given(st.dictionaries(st.sampled_from(sorted(Knobs.model_fields)), JSON, max_size=4))
def test_any_json_is_accepted_or_refused_with_its_field(value: dict[str, Any]) -> None:
    assert (refused_field(value) or "tunedock").startswith("tunedock")
