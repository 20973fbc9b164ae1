"""The tables, one module an area. Importing this package registers all of them on `Base.metadata`."""

from . import core, jobs
from .base import Base, Sequenced, bump

__all__ = ["Base", "Sequenced", "bump", "core", "jobs"]
