"""Who may call which method. Compared with the protos at start-up; a method without a line here is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf.descriptor import ServiceDescriptor
from tunedock_api.errors import Internal
from tunedock_api.v1 import adapters_pb2, fine_tuning_pb2, inference_pb2

from ..http.auth import Policy

_METHODS = {
    Policy.INFERENCE: ("Inference", "Chat StreamChat Complete StreamComplete StreamMany"),
    Policy.MODELS: ("Inference", "ListModels"),
    Policy.FILES: ("FineTuning", "StartUpload UploadFile GetFile ListFiles DeleteFile ReadFile"),
    Policy.JOBS: (
        "FineTuning",
        "CreateJob GetJob ListJobs CancelJob PauseJob ResumeJob ListJobEvents ListJobCheckpoints WatchJob",
    ),
    Policy.ADAPTERS_READ: (
        "Adapters",
        "ListAdapters GetAdapter ListVersions GetVersion DownloadVersion ListHistory WatchAdapters",
    ),
    Policy.ADAPTERS_WRITE: (
        "Adapters",
        "PublishVersion SetAlias RollBack LoadVersion PinVersion UnpinVersion DeleteAdapter",
    ),
}
_REFLECTION = "/grpc.reflection.{}.ServerReflection/ServerReflectionInfo"

SERVICES: tuple[ServiceDescriptor, ...] = tuple(
    service
    for module in (inference_pb2, fine_tuning_pb2, adapters_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)


def policies() -> dict[str, Policy]:
    """Full method name -> what it asks of its caller. Health is open, as /readyz is; reflection needs a key."""
    table = {
        f"/tunedock_api.v1.{service}/{method}": policy
        for policy, (service, methods) in _METHODS.items()
        for method in methods.split()
    }
    table["/tunedock_api.v1.Inference/GetCapacity"] = Policy.ADAPTERS_READ
    table |= {f"/grpc.health.v1.Health/{method}": Policy.PUBLIC for method in ("Check", "List", "Watch")}
    return table | {_REFLECTION.format(version): Policy.MODELS for version in ("v1", "v1alpha")}


def check_complete(table: Mapping[str, Policy], services: Iterable[ServiceDescriptor] = SERVICES) -> None:
    """Raises Internal when a method of ours has no policy, or a policy no method."""
    ours = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    named = {method for method in table if method.startswith("/tunedock_api.")}
    if ours != named:
        raise Internal(f"gRPC methods and policies differ: {', '.join(sorted(ours ^ named))}")
