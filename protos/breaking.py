"""Has the gRPC contract changed in a way that breaks clients of the last release?

    python protos/breaking.py              # exit 1 and say what broke
    python protos/breaking.py --release    # record the present contract as the last release

`released/` holds the descriptors of the last release. Adding is fine; removing, renaming, renumbering and retyping are not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

RELEASED = Path(__file__).resolve().parent / "released" / "tunedock_api.v1.binpb"
MODULES = ("inference", "fine_tuning", "adapters")


def current() -> Any:
    """The contract as the stubs have it, as a FileDescriptorSet."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    files = FileDescriptorSet()
    for name in MODULES:
        module = import_module(f"tunedock_api.v1.{name}_pb2")
        module.DESCRIPTOR.CopyToProto(files.file.add())
    return files


def facts(files: Any) -> dict[str, tuple[object, ...]]:
    """Everything that a client relies on: path -> what it is."""
    found: dict[str, tuple[object, ...]] = {}
    for file in files.file:
        for message in file.message_type:
            found |= dict(_message_facts(f"{file.package}.{message.name}", message))
        for service in file.service:
            for method in service.method:
                streams = (method.client_streaming, method.server_streaming)
                found[f"{file.package}.{service.name}/{method.name}"] = (
                    method.input_type,
                    method.output_type,
                    *streams,
                )
    return found


def _message_facts(path: str, message: Any) -> Iterator[tuple[str, tuple[object, ...]]]:
    yield path, ("message",)
    for field in message.field:
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
        yield (
            f"{path}.{field.name}",
            (field.number, field.type, field.label, field.type_name, field.proto3_optional, oneof),
        )
    for nested in message.nested_type:
        yield from _message_facts(f"{path}.{nested.name}", nested)


def broken(before: Any, after: Any) -> list[str]:
    """One line for everything of `before` that `after` does not have any more, or has otherwise."""
    now = facts(after)
    return [
        f"{path} is gone" if path not in now else f"{path} was {was} and is {now[path]}"
        for path, was in sorted(facts(before).items())
        if now.get(path) != was
    ]


def since_release() -> list[str]:
    """What is broken against the last release; nothing when there was none."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    if not RELEASED.exists():
        return []
    return broken(FileDescriptorSet.FromString(RELEASED.read_bytes()), current())


def main_check() -> None:
    """Ends the process with what broke, if anything did."""
    if problems := since_release():
        sys.exit("protos: clients of the last release would break:\n  " + "\n  ".join(problems))


def main() -> None:
    if sys.argv[1:] != ["--release"]:
        main_check()
        return
    RELEASED.parent.mkdir(exist_ok=True)
    RELEASED.write_bytes(current().SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
