"""client.files"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import openai
import pytest
from openai import OpenAI

TEXT = b"some bytes\n"


def test_create_from_bytes_stream_path_and_tuple(client: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "named.txt"
    path.write_bytes(TEXT)
    made = [
        client.files.create(file=TEXT, purpose="user_data"),
        client.files.create(file=io.BytesIO(TEXT), purpose="user_data"),
        client.files.create(file=path, purpose="user_data"),
        client.files.create(file=("given.txt", TEXT, "text/plain"), purpose="user_data"),
    ]
    assert [file.filename for file in made] == ["upload", "upload", "named.txt", "given.txt"]
    for file in made:
        assert (file.object, file.bytes, file.purpose) == ("file", len(TEXT), "user_data")
        assert client.files.content(file.id).read() == TEXT
        assert client.files.delete(file.id).deleted


def test_expires_after_is_answered_as_a_time(client: OpenAI) -> None:
    file = client.files.create(file=TEXT, purpose="user_data", expires_after={"anchor": "created_at", "seconds": 7200})
    assert file.expires_at == file.created_at + 7200
    client.files.delete(file.id)


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_list_with_limit_1_walks_every_page_once(client: OpenAI, order: Literal["asc", "desc"]) -> None:
    made = [client.files.create(file=TEXT, purpose="evals").id for _ in range(3)]
    seen = [file.id for file in client.files.list(limit=1, order=order, purpose="evals") if file.id in made]
    assert seen == (made if order == "asc" else made[::-1])
    for file in made:
        client.files.delete(file)


def test_wait_for_processing_ends_for_good_and_bad_files(client: OpenAI, training_file: str) -> None:
    assert client.files.retrieve(training_file).status == "processed"
    bad = client.files.create(file=b'{"messages": []}\n{nope\n', purpose="fine-tune")
    ended = client.files.wait_for_processing(bad.id, poll_interval=0.1)
    assert ended.status == "error"
    assert ended.status_details
    client.files.delete(bad.id)


def test_a_first_line_that_is_no_dictionary_is_refused_in_openai_s_words(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Expected file to have JSONL format"):
        client.files.create(file=b'"text"\n', purpose="fine-tune")


def test_deleted_files_are_gone(client: OpenAI) -> None:
    file = client.files.create(file=TEXT, purpose="user_data")
    answer = client.files.delete(file.id)
    assert (answer.id, answer.object, answer.deleted) == (file.id, "file", True)
    with pytest.raises(openai.NotFoundError, match=f"No such File object: {file.id}"):
        client.files.retrieve(file.id)
