"""Files and adapters as streams: resumed uploads, digests, watching; and reflection."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from support.fake_server import FakeServer
from tunedock import TuneDock
from tunedock_api.v1 import adapters_pb2 as ad
from tunedock_api.v1 import fine_tuning_pb2 as pb
from tunedock_api.v1.adapters_pb2_grpc import AdaptersStub
from tunedock_api.v1.fine_tuning_pb2_grpc import FineTuningStub
from tunedock_server.services.transfers import PART_BYTES

MIB = 1 << 20


@pytest.fixture
def stub(channel: grpc.Channel) -> FineTuningStub:
    return FineTuningStub(channel)


def begin(stub: FineTuningStub, size_bytes: int, purpose: str = "evals") -> pb.Upload:
    return stub.StartUpload(pb.StartUploadRequest(filename="x.bin", size_bytes=size_bytes, purpose=purpose))


def stream(upload: pb.Upload, content: bytes, sha256: str = "") -> Iterator[pb.UploadFileRequest]:
    """The rest of `content`."""
    yield pb.UploadFileRequest(upload_id=upload.upload_id, offset=upload.stored_bytes, sha256=sha256)
    for start in range(upload.stored_bytes, len(content), MIB):
        yield pb.UploadFileRequest(data=content[start : start + MIB])


def breaking(live: FakeServer, upload: pb.Upload, content: bytes) -> Iterator[pb.UploadFileRequest]:
    """Like `stream`, but the sender is lost once a part of what it sent is stored."""
    yield from stream(upload, content[: PART_BYTES + 3 * MIB])
    while not live.registry.uploads.parts("default", upload.upload_id):
        time.sleep(0.01)
    raise ConnectionError


def code_of(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    return error.value.code()


def test_an_upload_that_broke_in_the_middle_goes_on_and_is_whole(stub: FineTuningStub, live: FakeServer) -> None:
    content = os.urandom(2 * PART_BYTES + 5 * MIB)
    upload = begin(stub, len(content))
    with pytest.raises(grpc.RpcError):
        stub.UploadFile(breaking(live, upload, content))
    again = stub.StartUpload(pb.StartUploadRequest(upload_id=upload.upload_id))
    assert PART_BYTES <= again.stored_bytes < len(content)
    file = stub.UploadFile(stream(again, content, hashlib.sha256(content).hexdigest()))
    assert file.bytes == len(content)
    back = b"".join(chunk.data for chunk in stub.ReadFile(pb.ReadFileRequest(id=file.id)))
    assert back == content


def test_a_wrong_digest_leaves_no_file(stub: FineTuningStub, live: FakeServer) -> None:
    upload = begin(stub, 3)
    before = len(live.registry.files.list("default", None, 100, "desc", None).items)
    with pytest.raises(grpc.RpcError) as caught:
        stub.UploadFile(stream(upload, b"abc", "0" * 64))
    assert code_of(caught) is grpc.StatusCode.INVALID_ARGUMENT
    assert len(live.registry.files.list("default", None, 100, "desc", None).items) == before


@pytest.mark.parametrize(
    ("offset", "content", "status"),
    [
        (1, b"bc", grpc.StatusCode.FAILED_PRECONDITION),
        (0, b"ab", grpc.StatusCode.FAILED_PRECONDITION),
        (0, b"abcd", grpc.StatusCode.FAILED_PRECONDITION),
    ],
    ids=["not where it stands", "too short", "too long"],
)
def test_a_transfer_must_fit_what_was_announced(
    stub: FineTuningStub, offset: int, content: bytes, status: grpc.StatusCode
) -> None:
    upload = begin(stub, 3)
    messages = [pb.UploadFileRequest(upload_id=upload.upload_id, offset=offset), pb.UploadFileRequest(data=content)]
    with pytest.raises(grpc.RpcError) as caught:
        stub.UploadFile(iter(messages))
    assert code_of(caught) is status


def test_an_unknown_upload_is_not_found(stub: FineTuningStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.StartUpload(pb.StartUploadRequest(upload_id="upload_none"))
    assert code_of(caught) is grpc.StatusCode.NOT_FOUND


@pytest.mark.campaign
def test_half_a_gigabyte_is_cut_resumed_and_verified_with_flat_memory(
    stub: FineTuningStub, live: FakeServer, tmp_path: Path
) -> None:
    """Sender and server share this process; the file is never in memory."""
    block, blocks = os.urandom(MIB), 500
    digest = hashlib.sha256()
    for number in range(blocks):
        digest.update(number.to_bytes(4, "big") + block[4:])

    def sending(upload: pb.Upload, until: int) -> Iterator[pb.UploadFileRequest]:
        yield pb.UploadFileRequest(upload_id=upload.upload_id, offset=upload.stored_bytes, sha256=digest.hexdigest())
        for number in range(upload.stored_bytes // MIB, until):
            yield pb.UploadFileRequest(data=number.to_bytes(4, "big") + block[4:])
        if until < blocks:
            raise ConnectionError

    process = psutil.Process()
    upload = begin(stub, blocks * MIB)
    with pytest.raises(grpc.RpcError):
        stub.UploadFile(sending(upload, blocks // 2))
    middle_bytes = process.memory_info().rss
    file = stub.UploadFile(sending(stub.StartUpload(pb.StartUploadRequest(upload_id=upload.upload_id)), blocks))
    assert file.bytes == blocks * MIB
    assert live.registry.files.get("default", file.id).sha256 == digest.hexdigest()
    assert process.memory_info().rss - middle_bytes < 96 * MIB


def test_a_published_folder_is_a_version_and_reads_back(live: FakeServer, tmp_path: Path) -> None:
    with TuneDock(live.url, grpc=live.grpc) as client:
        version = client.adapters.publish("brought", live.peft_folder(61))
        assert version.ref == "brought@1"
        folder = client.adapters.download("brought@1", tmp_path / "out")
    assert (folder / "adapter_model.safetensors").stat().st_size > 0


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [ad.PublishVersionRequest(file="adapter_config.json")],
        [ad.PublishVersionRequest(start=ad.PublishStart(name="x")), ad.PublishVersionRequest(data=b"x")],
        [ad.PublishVersionRequest(start=ad.PublishStart(name="x")), ad.PublishVersionRequest(file="../x")],
        [ad.PublishVersionRequest(start=ad.PublishStart(name="x")), ad.PublishVersionRequest(file="manifest")],
    ],
    ids=["nothing", "no start", "data without a file", "a path", "a part is missing"],
)
def test_a_publish_out_of_order_is_refused(channel: grpc.Channel, messages: list[ad.PublishVersionRequest]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        AdaptersStub(channel).PublishVersion(iter(messages))
    assert code_of(caught) is grpc.StatusCode.INVALID_ARGUMENT


def test_watching_adapters_tells_the_present_and_every_change(channel: grpc.Channel, live: FakeServer) -> None:
    live.ready("watched", seed=62)
    call = AdaptersStub(channel).WatchAdapters(ad.WatchAdaptersRequest(name="watched"), timeout=10)
    assert next(call).aliases[0].targets[0].version == 1
    live.ready("watched", seed=63)
    while True:
        adapter = next(call)
        if adapter.aliases[0].targets[0].version == 2:
            break
    call.cancel()


def test_watching_an_unknown_job_is_not_found(stub: FineTuningStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        next(stub.WatchJob(pb.WatchJobRequest(id="ftjob-none")))
    assert code_of(caught) is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_our_services_and_health(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {
        "tunedock_api.v1.Inference",
        "tunedock_api.v1.FineTuning",
        "tunedock_api.v1.Adapters",
        "grpc.health.v1.Health",
    } <= set(database.get_services())
    assert database.FindFileContainingSymbol("tunedock_api.v1.Sampling").package == "tunedock_api.v1"
