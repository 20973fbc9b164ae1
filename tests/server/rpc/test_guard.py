"""Who may call what; what becomes of nonsense; TLS; bounds."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from support.bases import tiny_base
from support.fake_pool import FakePool
from support.fake_server import BASE, FakeServer, fake_server
from support.sizes import sized
from tunedock import TuneDock, Unauthenticated
from tunedock_api.errors import Internal
from tunedock_registry.layout import Home
from tunedock_registry.registry import Registry
from tunedock_server.app import Server
from tunedock_server.http.auth import Policy
from tunedock_server.rpc.policies import SERVICES, check_complete, policies
from tunedock_server.rpc.server import RpcServer, Tls
from tunedock_server.settings import Settings

ALLOWED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
}
METHODS = [method for service in SERVICES for method in service.methods]
BOUNDED = [method for method in METHODS if not method.name.startswith("Watch")]


def name_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def outcome(channel: grpc.Channel, method: MethodDescriptor, raw: list[bytes]) -> grpc.StatusCode:
    """How a call with these message bytes ends."""
    shapes: dict[tuple[bool, bool], Callable[..., Any]] = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    call = shapes[method.client_streaming, method.server_streaming](name_of(method))
    try:
        answer = call(iter(raw) if method.client_streaming else raw[0], timeout=10)
        if method.server_streaming:
            for _ in answer:
                pass
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_every_method_has_a_policy_and_every_policy_a_method() -> None:
    check_complete(policies())
    missing = dict(policies())
    del missing["/tunedock_api.v1.Inference/Chat"]
    with pytest.raises(Internal, match="Inference/Chat"):
        check_complete(missing)
    with pytest.raises(Internal, match="Nothing"):
        check_complete({**policies(), "/tunedock_api.v1.Inference/Nothing": Policy.PUBLIC})


def test_without_the_key_every_method_is_refused_and_health_is_open(tmp_path: Path) -> None:
    with fake_server(tmp_path, api_key="right") as locked, grpc.insecure_channel(locked.grpc) as channel:
        for method in METHODS:
            assert outcome(channel, method, [b""]) is grpc.StatusCode.UNAUTHENTICATED, method.full_name
        assert HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status
        with TuneDock(locked.url, "wrong", grpc=locked.grpc) as wrong, pytest.raises(Unauthenticated):
            wrong.models()
        with TuneDock(locked.url, "right", grpc=locked.grpc) as right:
            assert right.models()


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    open_call: Callable[[str], Any] = channel.unary_unary
    call = open_call("/tunedock_api.v1.Inference/Nothing")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_message_above_the_bound_is_refused(channel: grpc.Channel) -> None:
    assert outcome(channel, METHODS[0], [b"\x0a" * (9 << 20)]) is grpc.StatusCode.RESOURCE_EXHAUSTED


def random_message(kind: type[Message], rng: random.Random, depth: int = 0) -> Message:
    """Some fields of the message, with values at and beyond the edges."""
    message = kind()
    for field in kind.DESCRIPTOR.fields:
        if rng.random() < 0.6 and depth < 3:
            _fill(message, field, rng, depth)
    return message


def _fill(message: Message, field: Any, rng: random.Random, depth: int) -> None:
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            return
        made = random_message(GetMessageClass(field.message_type), rng, depth + 1)
        if field.is_repeated:
            getattr(message, field.name).append(made)
        else:
            getattr(message, field.name).CopyFrom(made)
        return
    values = [_scalar(field, rng) for _ in range(rng.randrange(3) if field.is_repeated else 1)]
    if field.is_repeated:
        getattr(message, field.name).extend(values)
    else:
        setattr(message, field.name, values[0])


def _scalar(field: Any, rng: random.Random) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(rng.randrange(64))
        case FieldDescriptor.CPPTYPE_STRING:
            return rng.choice(
                ["", "tiny-base", "a@1", "../x", "\0", "é" * 300, "ftjob-x", "production", "fine-tune", "["]
            )
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf"), 0.5])
        case FieldDescriptor.CPPTYPE_INT32 | FieldDescriptor.CPPTYPE_INT64:
            return rng.choice([0, 1, -1, 2**31 - 1, -(2**31)])
        case _:
            return rng.choice([0, 1, 7, 2**32 - 1])


def nonsense(method: MethodDescriptor, rng: random.Random) -> list[bytes]:
    """One to three messages: well-formed with odd values, cut, bent, or plain noise."""
    kind = GetMessageClass(method.input_type)
    raws = []
    for _ in range(rng.randrange(1, 4) if method.client_streaming else 1):
        raw = bytearray(random_message(kind, rng).SerializeToString())
        match rng.randrange(4):
            case 1 if raw:
                raw = raw[: rng.randrange(len(raw))]
            case 2 if raw:
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            case 3:
                raw = bytearray(rng.randbytes(rng.randrange(200)))
        raws.append(bytes(raw))
    return raws


def bombard(channel: grpc.Channel, calls: int, seed: int) -> dict[grpc.StatusCode, int]:
    """Outcomes of `calls` calls over all methods that end by themselves."""
    rng = random.Random(seed)
    seen: dict[grpc.StatusCode, int] = {}
    for number in range(calls):
        method = BOUNDED[number % len(BOUNDED)]
        status = outcome(channel, method, nonsense(method, rng))
        assert status in ALLOWED, f"{method.full_name} answered {status} (seed {seed}, call {number})"
        seen[status] = seen.get(status, 0) + 1
    return seen


def test_nonsense_is_always_answered_as_the_callers_mistake(channel: grpc.Channel, live: FakeServer) -> None:
    seen = bombard(channel, 2_000, seed=1)
    assert seen[grpc.StatusCode.INVALID_ARGUMENT] > 100
    assert live.server.leases.total() == 0


@pytest.mark.parametrize("messages", sized(campaign=15_000, slow=100_000))
def test_any_number_of_nonsense_messages_leaks_nothing(channel: grpc.Channel, live: FakeServer, messages: int) -> None:
    import psutil

    process = psutil.Process()
    bombard(channel, 5_000, seed=2)
    before_bytes, before_files = process.memory_info().rss, process.num_fds()
    for seed in range(3, 2 + messages // 5_000):
        bombard(channel, 5_000, seed)
    assert live.server.leases.total() == 0
    assert process.num_fds() <= before_files + 8
    assert process.memory_info().rss - before_bytes < 100 << 20


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem signs server.pem and client.pem; stranger.pem is signed by nobody."""
    folder = tmp_path_factory.mktemp("tls")
    write_certificates(folder)
    return folder


def write_certificates(folder: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def write(name: str, issuer: Any, signer: Any, is_ca: bool) -> tuple[Any, Any]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(signer or key, hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{name}.key").write_bytes(private)
        return subject, key

    authority = write("ca", None, None, True)
    write("server", *authority, False)
    write("client", *authority, False)
    write("stranger", None, None, False)


def test_tls_serves_only_those_who_trust_its_certificate(tmp_path: Path, certificates: Path) -> None:
    tls = Tls(certificates / "server.pem", certificates / "server.key")
    with fake_server(tmp_path, tls=tls) as secure:
        port = secure.grpc.rpartition(":")[2]
        trusting = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes())
        assert reachable(f"localhost:{port}", trusting)
        assert not reachable(
            f"localhost:{port}", grpc.ssl_channel_credentials((certificates / "stranger.pem").read_bytes())
        )


def test_mutual_tls_wants_a_certificate_that_the_authority_signed(tmp_path: Path, certificates: Path) -> None:
    tls = Tls(certificates / "server.pem", certificates / "server.key", certificates / "ca.pem")
    ca = (certificates / "ca.pem").read_bytes()

    def credentials(name: str | None) -> grpc.ChannelCredentials:
        pair = [(certificates / f"{name}.{end}").read_bytes() for end in ("key", "pem")] if name else [None, None]
        return grpc.ssl_channel_credentials(ca, *pair)

    with fake_server(tmp_path, tls=tls) as secure:
        target = f"localhost:{secure.grpc.rpartition(':')[2]}"
        assert reachable(target, credentials("client"))
        assert not reachable(target, credentials("stranger"))
        assert not reachable(target, credentials(None))


def reachable(target: str, credentials: grpc.ChannelCredentials) -> bool:
    with grpc.secure_channel(target, credentials) as channel:
        try:
            HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=3)
        except grpc.RpcError:
            return False
        return True


def test_the_client_speaks_tls_with_files_from_its_environment(
    tmp_path: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = Tls(certificates / "server.pem", certificates / "server.key", certificates / "ca.pem")
    for name, file in (("CA", "ca.pem"), ("CERT", "client.pem"), ("KEY", "client.key")):
        monkeypatch.setenv(f"TUNEDOCK_TLS_{name}", str(certificates / file))
    with fake_server(tmp_path, tls=tls) as secure:
        target = f"grpcs://localhost:{secure.grpc.rpartition(':')[2]}"
        with TuneDock(secure.url, grpc=target) as client:
            assert client.models()


def test_health_is_public_and_follows_start_engine_loss_and_drain(tmp_path: Path) -> None:
    with fake_server(tmp_path) as own, grpc.insecure_channel(own.grpc) as channel:
        stub, states = HealthStub(channel), health_pb2.HealthCheckResponse

        def becomes(status: int) -> bool:
            deadline = time.monotonic() + 3
            service = health_pb2.HealthCheckRequest(service="tunedock_api.v1.Inference")
            while time.monotonic() < deadline:
                if stub.Check(service).status == status:
                    return True
                time.sleep(0.02)
            return False

        assert becomes(states.SERVING)
        own.pool.behaviour.start_s = 0.8
        own.pool.die()
        assert becomes(states.NOT_SERVING)
        assert becomes(states.SERVING)
        own.run(own.rpc.drain())
        assert becomes(states.NOT_SERVING)


async def test_health_says_not_serving_until_the_engine_is_up(tmp_path: Path) -> None:
    registry = Registry.open(Home(tmp_path))
    server = Server(Settings(), registry, FakePool(tiny_base(BASE)), BASE)
    rpc = RpcServer(server)
    port = rpc.bind("127.0.0.1", 0)
    await rpc.start()
    states = health_pb2.HealthCheckResponse
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        told = HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await told.read()).status == states.NOT_SERVING
        await server.start()
        assert (await told.read()).status == states.SERVING
        server.draining = True
        assert (await told.read()).status == states.NOT_SERVING
    await rpc.stop(1.0)
    await server.stop()
    registry.close()
