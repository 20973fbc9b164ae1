"""An S3 endpoint for tests: `moto`'s server in this process, which honours `If-None-Match: *`.

`TUNEDOCK_TEST_S3=s3://bucket/prefix` (with the usual AWS variables) runs the same tests against a real endpoint.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import s3fs
from moto.server import ThreadedMotoServer

_SETTINGS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class S3:
    """`url` is a bucket, perhaps with a prefix, that the tests may fill."""

    url: str
    environment: dict[str, str] = field(default_factory=dict)

    def fresh_url(self) -> str:
        """A prefix that nobody has used."""
        return f"{self.url}/{uuid.uuid4().hex}"


@contextmanager
def running_s3() -> Iterator[S3]:
    if given := os.environ.get("TUNEDOCK_TEST_S3"):
        yield S3(given.rstrip("/"))
        return
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        environment = _SETTINGS | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
        filesystem = s3fs.S3FileSystem(
            key="test", secret="test", endpoint_url=environment["AWS_ENDPOINT_URL"], skip_instance_cache=True
        )
        # moto keeps its buckets for as long as the process lives.
        bucket = f"tunedock-{uuid.uuid4().hex}"
        filesystem.mkdir(bucket)
        yield S3(f"s3://{bucket}", environment)
    finally:
        server.stop()
