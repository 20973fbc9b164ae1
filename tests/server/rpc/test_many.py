"""`Inference.StreamMany`: many streams over one call, each with its own answer, errors, time and end."""

from __future__ import annotations

import asyncio
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest
from google.rpc.status_pb2 import Status
from support.fake_pool import word_of
from support.fake_server import BASE, FakeServer, fake_server
from tunedock_api.v1 import inference_pb2 as pb
from tunedock_api.v1.inference_pb2_grpc import InferenceStub

HELLO = [pb.Message(role="user", content="hello")]


class Conversation:
    """One StreamMany call. `ask` sends; iterating gives the parts as they come."""

    def __init__(self, stub: InferenceStub, **options: object) -> None:
        self._asked: queue.Queue[pb.StreamManyRequest | None] = queue.Queue()
        self.call = stub.StreamMany(iter(self._asked.get, None), timeout=20, **options)  # type: ignore[arg-type]

    def ask(self, stream: int, model: str = BASE, **fields: object) -> None:
        chat = pb.ChatRequest(model=model, messages=HELLO)
        self._asked.put(pb.StreamManyRequest(stream=stream, chat=chat, **fields))  # type: ignore[arg-type]

    def send(self, request: pb.StreamManyRequest) -> None:
        self._asked.put(request)

    def no_more(self) -> None:
        self._asked.put(None)

    def parts(self) -> Iterator[pb.StreamPart]:
        for message in self.call:
            yield from message.parts


@pytest.fixture
def stub(channel: grpc.Channel) -> InferenceStub:
    return InferenceStub(channel)


@pytest.fixture
def slow(live: FakeServer) -> Iterator[None]:
    """Every token takes a while."""
    live.pool.behaviour.token_s = 0.2
    yield
    live.pool.behaviour.token_s = 0.0


@contextmanager
def together(live: FakeServer) -> Iterator[Callable[[], object]]:
    """Every stream waits after its first token, and all go on in one turn of the server's loop when the caller says so."""
    gate = live.pool.behaviour.hold = asyncio.Event()
    try:
        yield lambda: live.loop.call_soon_threadsafe(gate.set)
    finally:
        live.loop.call_soon_threadsafe(gate.set)
        live.pool.behaviour.hold = None


def texts(parts: Iterator[pb.StreamPart]) -> dict[int, str]:
    found: dict[int, str] = {}
    for part in parts:
        found[part.stream] = found.get(part.stream, "") + "".join(choice.text for choice in part.chunk.choices)
    return found


def idle_within(live: FakeServer, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not live.server.leases.total() and not sum(live.pool.busy.values()):
            return True
        time.sleep(0.01)
    return False


def test_every_stream_gets_its_own_answer(stub: InferenceStub, live: FakeServer) -> None:
    version = live.ready("many", seed=3)
    talk = Conversation(stub)
    talk.ask(1)
    talk.ask(2, "many")
    talk.send(pb.StreamManyRequest(stream=3, complete=pb.CompleteRequest(model=BASE, text="hello")))
    talk.no_more()
    found = texts(talk.parts())
    whole = stub.Chat(pb.ChatRequest(model="many", messages=HELLO)).choices[0].text
    assert found[2] == whole
    assert word_of(version.digest) in found[2]
    assert found[1].split() == found[3].split() == [word_of(None)] * 5


def test_a_stream_says_who_it_is_first_counts_and_ends(stub: InferenceStub, live: FakeServer) -> None:
    version = live.ready("many-ends", seed=4)
    talk = Conversation(stub)
    talk.ask(7, "many-ends")
    talk.no_more()
    *chunks, end = talk.parts()
    assert (chunks[0].chunk.model, chunks[1].chunk.model) == ("many-ends@1", "")
    assert chunks[-1].chunk.usage.completion_tokens == 5
    assert (end.end.status, end.end.digest) == (b"", version.digest)
    assert end.end.request_id.endswith("-7")
    assert chunks[0].chunk.id == end.end.request_id


def test_what_one_step_made_for_all_streams_comes_in_one_message(stub: InferenceStub, live: FakeServer) -> None:
    with together(live) as go_on:
        talk = Conversation(stub)
        for stream in range(8):
            talk.ask(stream)
        talk.no_more()
        messages = iter(talk.call)
        begun: Counter[int] = Counter()
        while len(begun) < 8:
            begun.update(part.stream for part in next(messages).parts)
        go_on()
        sizes = [len(message.parts) for message in messages]
    assert sum(sizes) == 8 * (4 + 2)  # the other tokens, the count and the end
    assert len(sizes) <= 10  # eight calls would have sent 48


def test_one_streams_failure_leaves_the_others_alone(stub: InferenceStub) -> None:
    talk = Conversation(stub)
    talk.ask(1, "nobody")
    talk.ask(2)
    talk.send(pb.StreamManyRequest(stream=3))
    talk.no_more()
    parts = list(talk.parts())
    ends = {part.stream: Status.FromString(part.end.status) for part in parts if part.HasField("end")}
    codes = {stream: status.code for stream, status in ends.items()}
    assert codes == {1: grpc.StatusCode.NOT_FOUND.value[0], 2: 0, 3: grpc.StatusCode.INVALID_ARGUMENT.value[0]}
    assert "nobody" in ends[1].message
    assert ends[1].details
    assert texts(iter(parts))[2]


@pytest.mark.usefixtures("slow")
def test_a_cancelled_stream_frees_its_sequence_and_the_others_go_on(stub: InferenceStub, live: FakeServer) -> None:
    talk = Conversation(stub)
    talk.ask(1)
    talk.ask(2)
    parts = talk.parts()
    next(parts)
    assert live.server.leases.total() == 2
    talk.send(pb.StreamManyRequest(stream=1, cancel=True))
    talk.no_more()
    rest = list(parts)
    assert [part.stream for part in rest if part.HasField("end")] == [2]
    assert idle_within(live, 1.0)


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("how", ["cancel", "hang up"])
def test_the_end_of_the_call_frees_every_sequence_within_a_second(live: FakeServer, how: str) -> None:
    channel = grpc.insecure_channel(live.grpc)
    talk = Conversation(InferenceStub(channel))
    for stream in (1, 2, 3):
        talk.ask(stream)
    next(talk.parts())
    if how == "cancel":
        talk.call.cancel()
    else:
        channel.close()
    assert idle_within(live, 1.0)
    talk.no_more()
    channel.close()


@pytest.mark.usefixtures("slow")
def test_every_stream_has_its_own_deadline(stub: InferenceStub, live: FakeServer) -> None:
    talk = Conversation(stub)
    talk.ask(1, timeout_s=0.3)
    talk.ask(2)
    talk.no_more()
    ends = {part.stream: Status.FromString(part.end.status) for part in talk.parts() if part.HasField("end")}
    assert ends[1].code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert ends[2].code == 0
    assert idle_within(live, 1.0)


@pytest.mark.usefixtures("slow")
def test_a_number_that_is_taken_ends_the_call(stub: InferenceStub, live: FakeServer) -> None:
    talk = Conversation(stub)
    talk.ask(1)
    talk.ask(1)
    with pytest.raises(grpc.RpcError) as caught:
        list(talk.parts())
    talk.no_more()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert idle_within(live, 1.0)


def test_an_open_call_does_not_hold_up_a_server_that_stops(tmp_path_factory: pytest.TempPathFactory) -> None:
    with fake_server(tmp_path_factory.mktemp("stop")) as live, grpc.insecure_channel(live.grpc) as channel:
        live.pool.behaviour.token_s = 0.2
        talk = Conversation(InferenceStub(channel))
        talk.ask(1)
        parts = talk.parts()
        next(parts)
        began = time.monotonic()
        live.run(live.rpc.stop(10.0))
        assert 0.5 < time.monotonic() - began < 5.0
        assert [part.stream for part in parts if part.HasField("end")] == [1]
        talk.no_more()


def test_a_revoked_key_gets_no_further_stream(tmp_path_factory: pytest.TempPathFactory) -> None:
    with fake_server(tmp_path_factory.mktemp("keys"), api_key="boot") as live:
        key = live.registry.keys.create("default", "caller", ["inference"])
        live.run(live.server.watcher.look())
        with grpc.insecure_channel(live.grpc) as channel:
            talk = Conversation(InferenceStub(channel), metadata=(("authorization", f"Bearer {key.secret}"),))
            talk.ask(1)
            parts = talk.parts()
            assert any(part.HasField("end") and not part.end.status for part in parts)
            live.registry.keys.revoke("default", key.record.id)
            live.run(live.server.watcher.look())
            talk.ask(2)
            end = next(part.end for part in parts if part.HasField("end"))
            talk.no_more()
        assert Status.FromString(end.status).code == grpc.StatusCode.UNAUTHENTICATED.value[0]
