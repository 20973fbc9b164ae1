"""The tables, one module an area. Importing this package registers all of them on `Base.metadata`."""

from . import access, adapters, core, jobs, uploads, webhooks
from .base import Base, Sequenced, bump

__all__ = ["Base", "Sequenced", "access", "adapters", "bump", "core", "jobs", "uploads", "webhooks"]
