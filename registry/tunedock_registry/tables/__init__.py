"""The tables, one module an area. Importing this package registers all of them on `Base.metadata`."""

from . import adapters, core, jobs
from .base import Base, Sequenced, bump

__all__ = ["Base", "Sequenced", "adapters", "bump", "core", "jobs"]
