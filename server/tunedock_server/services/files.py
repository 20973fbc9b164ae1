"""Files: stored first, validated right after in a thread, so that every file reaches a final status."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, Literal

from tunedock_api.errors import BadInput, NotFound
from tunedock_registry.data.formats import FileReport, validate_file
from tunedock_registry.data.isolation import Inspected
from tunedock_registry.records import Attempt, FileRecord, Order, Page
from tunedock_registry.registry import Registry

from .inspection import FileInspector

log = logging.getLogger(__name__)

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
MIN_EXPIRY_S, MAX_EXPIRY_S = 3_600, 2_592_000
BATCH_EXPIRY_S = MAX_EXPIRY_S
MAX_FILENAME_CHARS = 255
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class NewFile:
    """What a caller uploads. `stream` is read once, in a thread; None when the bytes come in parts."""

    filename: str
    purpose: str
    stream: BinaryIO | None = None
    expires_after_s: int | None = None


class FileValidator:
    """Validates uploaded files one after the other. Call `recover` at start: what a crash left behind is done first."""

    def __init__(self, registry: Registry, inspector: FileInspector | None = None) -> None:
        """Without an inspector only the text is checked, in a thread; no token is counted."""
        self._registry = registry
        self._inspector = inspector
        self._queue: asyncio.Queue[FileRecord] = asyncio.Queue()
        self._open: dict[str, asyncio.Event] = {}

    async def recover(self) -> None:
        for record in await asyncio.to_thread(self._registry.files.unfinished):
            self.submit(record)

    def submit(self, record: FileRecord) -> None:
        if record.status == "uploaded" and record.id not in self._open:
            self._open[record.id] = asyncio.Event()
            self._queue.put_nowait(record)

    async def finished(self, file_id: str, timeout_s: float) -> None:
        """Returns when the file has been validated here, or after `timeout_s`."""
        done = self._open.get(file_id)
        if done is not None:
            try:
                await asyncio.wait_for(done.wait(), timeout_s)
            except TimeoutError:
                return

    async def run(self) -> None:
        while True:
            record = await self._queue.get()
            try:
                await asyncio.to_thread(self._validate, record)
            except NotFound:
                log.info("file %s was deleted before it was validated", record.id)
            except Exception:
                log.exception("file %s could not be validated", record.id)
            finally:
                self._open.pop(record.id).set()

    def _validate(self, record: FileRecord) -> None:
        found = self._inspected(record)
        status: Literal["processed", "error"] = "processed" if found.ok else "error"
        self._registry.files.set_result(record.id, status, found.status_details, found.report)

    def _inspected(self, record: FileRecord) -> Inspected:
        if self._inspector is not None and record.purpose == "fine-tune":
            try:
                return self._inspector.inspect(record)
            except BadInput as error:
                return Inspected(False, error.message, {})
        with self._registry.files.open(record.project, record.id) as stream:
            report = validate_file(stream, record.purpose)
        return Inspected(report.ok, report.status_details(), report.as_dict())


class FileService:
    """Use cases on files; every answer belongs to `project`."""

    def __init__(
        self, registry: Registry, validator: FileValidator, max_bytes: int, inspector: FileInspector | None = None
    ) -> None:
        self._registry = registry
        self._validator = validator
        self._max_bytes = max_bytes
        self._inspector = inspector

    async def create(self, project: str, new: NewFile, attempt: Attempt) -> FileRecord:
        """Raises BadInput for a purpose, name, expiry or first line that cannot be; `payload_too_large`; Unavailable."""
        check_new_file(new)
        stream = new.stream or BytesIO()
        record = await asyncio.to_thread(self._store, project, new, stream, attempt)
        self._validator.submit(record)
        return record

    def _store(self, project: str, new: NewFile, stream: BinaryIO, attempt: Attempt) -> FileRecord:
        if new.purpose == "fine-tune":
            _check_first_line(stream)
        expires = new.expires_after_s or (BATCH_EXPIRY_S if new.purpose == "batch" else None)
        return self._registry.files.create(
            project,
            new.filename,
            new.purpose,
            _chunks(stream),
            expires,
            max_bytes=self._max_bytes,
            attempt=attempt,
        )

    async def get(self, project: str, file_id: str) -> FileRecord:
        return await asyncio.to_thread(self._registry.files.get, project, file_id)

    async def settled(self, project: str, file_id: str, timeout_s: float) -> FileRecord:
        """The file once it is validated, or as it is after `timeout_s`."""
        record = await self.get(project, file_id)
        if record.status == "uploaded":
            await self._validator.finished(file_id, timeout_s)
            record = await self.get(project, file_id)
        return record

    async def report(self, project: str, file_id: str, validation_file: str | None) -> dict[str, Any]:
        """What validation found, {} before it is done; with a validation file also how far the two overlap."""
        record = await self.get(project, file_id)
        if validation_file is None or self._inspector is None:
            return record.report or {}
        return (await self._inspector.compare(record, await self.get(project, validation_file))).report

    async def report_for(self, record: FileRecord, template_kwargs: dict[str, Any]) -> dict[str, Any]:
        """What a job would find that renders with these kwargs. Raises BadInput with the kwarg that has to change."""
        if not template_kwargs or self._inspector is None:
            return record.report or {}
        knobs = {"chat_template_kwargs": template_kwargs}
        return (await asyncio.to_thread(self._inspector.inspect, record, None, knobs)).report

    async def list(
        self, project: str, after: str | None, limit: int, order: Order, purpose: str | None
    ) -> Page[FileRecord]:
        return await asyncio.to_thread(self._registry.files.list, project, after, limit, order, purpose)

    async def delete(self, project: str, file_id: str) -> None:
        await asyncio.to_thread(self._registry.files.delete, project, file_id)

    async def open(self, project: str, file_id: str) -> BinaryIO:
        return await asyncio.to_thread(self._registry.files.open, project, file_id)


def report_of(record: FileRecord) -> FileReport | None:
    """The stored report's head, enough to say why a job cannot use the file; None before validation."""
    if record.report is None:
        return None
    return _report(record.report)


def _report(stored: dict[str, Any]) -> FileReport:
    from tunedock_registry.data.lines import LineError

    errors = tuple(LineError(**error) for error in stored.get("errors", ()))
    return FileReport(
        kind=stored.get("kind"),
        num_lines=stored.get("num_lines", 0),
        num_examples=stored.get("num_examples", 0),
        num_errors=stored.get("num_errors", len(errors)),
        errors=errors,
    )


def check_new_file(new: NewFile) -> None:
    """Raises BadInput with the field that cannot be."""
    if new.purpose not in PURPOSES:
        raise BadInput(f"'{new.purpose[:40]}' is not one of {', '.join(PURPOSES)}.", param="purpose")
    if not 1 <= len(new.filename) <= MAX_FILENAME_CHARS or "\0" in new.filename:
        raise BadInput(f"A file name has 1 to {MAX_FILENAME_CHARS} characters.", param="file")
    if new.expires_after_s is not None and not MIN_EXPIRY_S <= new.expires_after_s <= MAX_EXPIRY_S:
        raise BadInput(
            f"'expires_after[seconds]' must be from {MIN_EXPIRY_S} to {MAX_EXPIRY_S}, not {new.expires_after_s}.",
            param="expires_after.seconds",
        )


def _check_first_line(stream: BinaryIO) -> None:
    """OpenAI refuses such a file at once; every other error is reported through the file's status."""
    first = stream.readline(_CHUNK_BYTES)
    stream.seek(0)
    try:
        value = json.loads(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return
    if not isinstance(value, dict):
        raise BadInput(
            "Expected file to have JSONL format, where every line is a JSON dictionary. Line 1 is not a dictionary",
            "invalid_file_format",
            param="file",
        )


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk
