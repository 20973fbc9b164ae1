"""Where the client connects to."""

from __future__ import annotations

import pytest
from tunedock.settings import DEFAULT_BASE_URL, connection
from tunedock_api.errors import BadInput


def test_an_argument_wins_over_tunedock_over_openai_over_the_default() -> None:
    env = {"OPENAI_BASE_URL": "http://openai/v1"}
    assert connection(env={}).base_url == DEFAULT_BASE_URL
    assert connection(env=env).base_url == "http://openai/v1"
    env["TUNEDOCK_BASE_URL"] = "http://ours/v1"
    assert connection(env=env).base_url == "http://ours/v1"
    assert connection("http://given/v1", env=env).base_url == "http://given/v1"


def test_keys_follow_the_same_order() -> None:
    env = {"OPENAI_API_KEY": "o", "TUNEDOCK_API_KEY": "t"}
    assert connection(env=env).api_key == "t"
    assert connection(api_key="a", env=env).api_key == "a"
    assert connection(env={}).api_key is None


@pytest.mark.parametrize("url", ["http://h:8000", "http://h:8000/", "http://h:8000/v1", "http://h:8000/v1/"])
def test_the_version_prefix_may_be_left_out(url: str) -> None:
    made = connection(url, env={})
    assert made.base_url == "http://h:8000/v1"
    assert made.root_url == "http://h:8000"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://h", "http://"])
def test_what_is_no_address_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(BadInput, match="http://host:8000/v1"):
        connection(url, env={})


def test_a_key_never_shows_in_the_repr() -> None:
    assert "hunter2" not in repr(connection(api_key="hunter2", env={}))
