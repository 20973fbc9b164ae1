"""Alembic's folder, inside the package so that the wheel carries it.

A new table or column: change `tables/`, then add `versions/NNNN_what.py` whose `down_revision` is the newest one there.
Write both directions by hand. They run inside the one transaction that `migrate.py` opens, on SQLite too.
"""
