"""`Adapters`: what the registry offers about adapters, their versions and aliases. See the package's docstring."""

from __future__ import annotations

from .lifecycle import Lifecycle


class Adapters(Lifecycle):
    """Reading → Moving → Publishing → Lifecycle, one file each. All calls are synchronous and safe from any thread and
    any number of processes."""
