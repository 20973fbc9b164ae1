"""client.uploads"""

from __future__ import annotations

import hashlib
from pathlib import Path

import openai
import pytest
from openai import OpenAI

DATA = bytes(range(256)) * 20


def begin(client: OpenAI) -> str:
    upload = client.uploads.create(bytes=len(DATA), filename="b.bin", mime_type="x/y", purpose="user_data")
    assert (upload.status, upload.object, upload.file) == ("pending", "upload", None)
    assert upload.expires_at == upload.created_at + 3600
    return upload.id


def test_upload_file_chunked_with_parts_smaller_than_the_file(client: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "b.bin"
    path.write_bytes(DATA)
    done = client.uploads.upload_file_chunked(file=path, mime_type="x/y", purpose="user_data", part_size=999)
    assert done.status == "completed"
    assert done.file is not None
    assert client.files.content(done.file.id).read() == DATA
    client.files.delete(done.file.id)


def test_part_ids_decide_the_order(client: OpenAI) -> None:
    upload = begin(client)
    tail = client.uploads.parts.create(upload, data=DATA[100:])
    head = client.uploads.parts.create(upload, data=DATA[:100])
    assert (head.object, head.upload_id) == ("upload.part", upload)
    md5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()
    done = client.uploads.complete(upload, part_ids=[head.id, tail.id], md5=md5)
    assert done.file is not None
    assert client.files.content(done.file.id).read() == DATA


def test_a_wrong_md5_and_a_wrong_sum_are_400(client: OpenAI) -> None:
    upload = begin(client)
    part = client.uploads.parts.create(upload, data=DATA)
    with pytest.raises(openai.BadRequestError):
        client.uploads.complete(upload, part_ids=[part.id], md5="0" * 32)
    short = begin(client)
    part = client.uploads.parts.create(short, data=DATA[:7])
    with pytest.raises(openai.BadRequestError):
        client.uploads.complete(short, part_ids=[part.id])


def test_nothing_is_taken_after_cancel(client: OpenAI) -> None:
    upload = begin(client)
    assert client.uploads.cancel(upload).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.uploads.parts.create(upload, data=DATA)
