"""The run's own record of every step: a JSONL file in the run folder, the result CSV, and the words of the events."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunedock_registry.durable import sync, write_file

# OpenAI's header first, further columns after it.
COLUMNS = (
    "step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy",
    "full_valid_loss", "full_valid_mean_token_accuracy", "learning_rate", "grad_norm", "num_tokens", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One optimizer step. Losses are per trained token in nats (per pair for DPO); None was not measured."""

    step: int
    train_loss: float
    train_accuracy: float
    learning_rate: float
    grad_norm: float
    num_tokens: int
    num_labels: int
    seconds: float
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None

    def metrics(self) -> dict[str, float]:
        """In the API's names, what was measured."""
        values = {
            "step": self.step,
            "train_loss": self.train_loss,
            "train_mean_token_accuracy": self.train_accuracy,
            "valid_loss": self.valid_loss,
            "valid_mean_token_accuracy": self.valid_mean_token_accuracy,
            "full_valid_loss": self.full_valid_loss,
            "full_valid_mean_token_accuracy": self.full_valid_mean_token_accuracy,
        }
        return {name: round(value, 6) for name, value in values.items() if value is not None}

    def message(self, step: int, total_steps: int) -> str:
        """OpenAI's text: dashboards parse it."""
        text = f"Step {step}/{total_steps}: training loss={self.train_loss:.2f}"
        if self.valid_loss is not None:
            text += f", validation loss={self.valid_loss:.2f}"
        if self.full_valid_loss is not None:
            text += f", full validation loss={self.full_valid_loss:.2f}"
        return text

    def data(self, step: int, total_steps: int) -> dict[str, Any]:
        return {**self.metrics(), "step": step, "total_steps": total_steps}


class History:
    """`metrics.jsonl` of a run. Opening it drops what lies beyond `step`, which a resumed run is about to repeat."""

    def __init__(self, path: Path, step: int = 0) -> None:
        self._path = path
        self.rows = [row for row in _read(path) if row.step <= step]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, "".join(_line(row) for row in self.rows).encode())

    def add(self, row: Row) -> None:
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(row))

    def sync(self) -> None:
        """What was added survives a power cut."""
        sync(self._path)

    def csv(self) -> bytes:
        """The result file."""
        out = io.StringIO()
        writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({key: "" if value is None else value for key, value in asdict(row).items()})
        return out.getvalue().encode()

    @property
    def trained_tokens(self) -> int:
        return sum(row.num_labels for row in self.rows)


def _line(row: Row) -> str:
    return json.dumps(asdict(row)) + "\n"


def _read(path: Path) -> list[Row]:
    """The whole lines of the file, the last one of each step; a torn last line is dropped."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    rows = [Row(**json.loads(line)) for line in lines]
    return list({row.step: row for row in rows}.values())


_SCALARS = (
    ("train/loss", "train_loss"),
    ("train/accuracy", "train_accuracy"),
    ("train/learning_rate", "learning_rate"),
    ("train/grad_norm", "grad_norm"),
    ("valid/loss", "valid_loss"),
    ("valid/accuracy", "valid_mean_token_accuracy"),
    ("valid/full_loss", "full_valid_loss"),
    ("valid/full_accuracy", "full_valid_mean_token_accuracy"),
)


def scalars(row: Row) -> dict[str, float]:
    """What was measured at a step, under the names that all trackers show."""
    found = {tag: getattr(row, name) for tag, name in _SCALARS}
    measured = {tag: float(value) for tag, value in found.items() if value is not None}
    return measured | {"train/tokens_per_second": row.num_tokens / max(row.seconds, 1e-9)}
