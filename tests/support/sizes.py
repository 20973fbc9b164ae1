"""One test in two sizes: bounded in the campaign that CI runs, and as long as it deserves under `-m slow`."""

from __future__ import annotations

from typing import Any

import pytest


def sized(*, campaign: int, slow: int) -> list[Any]:
    """Values for `pytest.mark.parametrize`."""
    return [pytest.param(campaign, marks=pytest.mark.campaign), pytest.param(slow, marks=pytest.mark.slow)]
