"""What both example data sets share: one chat row, and writing a file of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path


def chat_row(system: str, question: str, answer: str) -> dict[str, object]:
    """One line of OpenAI chat JSONL: system, user, assistant."""
    turns = [("system", system), ("user", question), ("assistant", answer)]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def write_jsonl(path: Path, rows: Iterable[dict[str, object]]) -> None:
    """Writes one JSON object per line, UTF-8, and says what it wrote."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path.name}: {len(lines)} rows, {path.stat().st_size} bytes")
