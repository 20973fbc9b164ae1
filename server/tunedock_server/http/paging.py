"""Query parameters of the lists."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from tunedock_registry.records import Order

After = Annotated[str | None, Query(max_length=256, description="id of the last item of the page before")]
Limit = Annotated[int, Query(ge=1, le=100)]
FileLimit = Annotated[int, Query(ge=1, le=10_000)]
OrderQuery = Annotated[Order, Query()]
