"""What all tables share.

Every area has its own module here and its own Alembic revision in `migrations/versions` (one linear chain: `0001_core`,
`0002_…`); a test compares the migrated schema with these classes, so neither can be forgotten.

Conventions: `seq` gives the order of rows and never repeats; `id` is what leaves the product; times are whole Unix
seconds; JSON columns hold plain JSON and are replaced as a whole, never changed in place.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Integer, MetaData, String, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, declared_attr, mapped_column

NAMING = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

# SQLite numbers rows by itself only in a column of type INTEGER.
BigInt = BigInteger().with_variant(Integer, "sqlite")
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012  SQLAlchemy reads it from the class
        int: BigInt,
        dict[str, Any]: Json,
        list[Any]: Json,
    }


class Sequenced:
    """Rows that are listed: `seq` rises with every insert and is never given out twice, also after a delete.

    Writers take turns (`Database.write`), so a row with a lower `seq` never becomes visible after one with a higher.
    """

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)

    @declared_attr.directive
    def __table_args__(cls) -> Any:
        return {"sqlite_autoincrement": True}


class ChangeCounter(Base):
    """One row. It rises with every committed write that a server must notice."""

    __tablename__ = "change_counter"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int] = mapped_column(default=0)


_COUNTER = select(ChangeCounter.__table__.c.value)


def change_counter(session: Session) -> int:
    """Without the ORM: servers look at it many times a second."""
    return int(session.connection().execute(_COUNTER).scalar_one())


def bump(session: Session) -> None:
    """Call it in the transaction of a change that servers must notice: versions, aliases, pins, a job's status."""
    session.execute(update(ChangeCounter).values(value=ChangeCounter.value + 1))
