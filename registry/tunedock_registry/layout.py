"""Where things lie under `TUNEDOCK_HOME`. Nothing else builds these paths."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tunedock_api.errors import BadInput


@dataclass(frozen=True)
class Home:
    """The folder of one TuneDock installation."""

    root: Path

    @classmethod
    def resolve(cls, explicit: str | Path | None = None) -> Home:
        """The flag wins over TUNEDOCK_HOME, which wins over the XDG data folder."""
        chosen = explicit or os.environ.get("TUNEDOCK_HOME")
        if chosen:
            return cls(Path(chosen).expanduser().absolute())
        data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
        return cls(Path(data).expanduser().absolute() / "tunedock")

    @property
    def db_path(self) -> Path:
        return self.root / "tunedock.db"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def tmp(self) -> Path:
        """On the same file system as everything else, so that a rename out of it is atomic."""
        return self.root / "tmp"

    def adapter_dir(self, digest: str) -> Path:
        return self.adapters / f"sha256-{digest}"

    def run_dir(self, job_id: str) -> Path:
        return self.runs / job_id

    def create(self) -> Home:
        """Makes the folders. Raises BadInput when the home cannot be written."""
        try:
            for folder in (self.root, self.blobs, self.adapters, self.runs, self.models, self.tmp):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise BadInput(
                f"The home folder {self.root} cannot be written ({error.strerror}): choose another with --home or "
                "TUNEDOCK_HOME.",
                param="home",
            ) from error
        if not os.access(self.tmp, os.W_OK | os.X_OK):
            raise BadInput(
                f"The home folder {self.root} cannot be written: choose another with --home or TUNEDOCK_HOME.",
                param="home",
            )
        return self
