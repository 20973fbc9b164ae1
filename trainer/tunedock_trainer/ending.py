"""How a claimed job ends is always written, whatever happens."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from tunedock_api.errors import Conflict, TuneDockError, Unavailable
from tunedock_registry.records import Claim, Control
from tunedock_registry.registry import Registry

from .reporter import Stopped

log = logging.getLogger(__name__)
_RELEASE_TO: dict[Control, Literal["queued", "paused", "cancelled"]] = {
    Control.CONTINUE: "queued",
    Control.PAUSE: "paused",
    Control.CANCEL: "cancelled",
}


@contextmanager
def ending(registry: Registry, claim: Claim) -> Iterator[None]:
    """Swallows the job's failure after writing it down; a claim that has passed to somebody else is left alone."""
    log.info("job %s: claimed (epoch %d)", claim.job.id, claim.epoch)
    try:
        yield
    except Exception as error:  # the edge of the process: the trainer must be ready for the next job
        log.info("job %s: ended with %s: %s", claim.job.id, type(error).__name__, error)
        try:
            _write(registry, claim, error)
        except (Conflict, Unavailable) as late:
            log.warning("job %s: its end could not be written: %s", claim.job.id, late)
    else:
        log.info("job %s: published", claim.job.id)


def _write(registry: Registry, claim: Claim, error: Exception) -> None:
    if isinstance(error, Stopped):
        registry.jobs.release(claim, _RELEASE_TO[error.control])
    elif isinstance(error, TuneDockError) and not isinstance(error, Unavailable):
        said = {"code": error.code, "message": error.message, "param": error.param}
        registry.jobs.fail(claim, said, "".join(traceback.format_exception(error)))
    else:
        registry.jobs.retry(claim, "".join(traceback.format_exception(error)))
