"""What every table shares: the declarative base, constraint names, and column types by annotation."""

import datetime
import uuid
from enum import StrEnum
from typing import Annotated, Any

from sqlalchemy import BigInteger, CheckConstraint, DateTime, FetchedValue, MetaData, Text, Uuid, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

GeneratedUuid = Annotated[uuid.UUID, mapped_column(primary_key=True, server_default=func.gen_random_uuid())]
CreatedAt = Annotated[
    datetime.datetime, mapped_column(server_default=func.now(), comment="When the row was made")
]
UpdatedAt = Annotated[
    datetime.datetime,
    mapped_column(
        server_default=func.now(),
        server_onupdate=FetchedValue(),
        comment="When the row last changed, whoever changed it: a trigger moves it",
    ),
]
"""Moved by a trigger (rules.py), whoever writes."""
Counter = Annotated[int, mapped_column(server_default=text("0"))]
ByteCounter = Annotated[int, mapped_column(BigInteger, server_default=text("0"))]


class Base(DeclarativeBase):
    """Declarative base of every table."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads this name from the class.
        str: Text,
        uuid.UUID: Uuid,
        datetime.datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(none_as_null=True),
        list[Any]: JSONB(none_as_null=True),
    }


OWNED = "all, delete-orphan"
"""Cascade of a relationship to rows that belong to this one: what a session has loaded goes with it there, and the
rest by the foreign key.
"""


def one_of(column: str, words: type[StrEnum]) -> CheckConstraint:
    """CHECK that ``column`` holds one of the words; the enum is the only place where they stand."""
    listed = ", ".join(f"'{word.value}'" for word in words)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def array_of(column: str, words: type[StrEnum]) -> CheckConstraint:
    """CHECK that ``column`` holds a JSON array of the words."""
    listed = ", ".join(f'"{word.value}"' for word in words)
    return CheckConstraint(f"jsonb_typeof({column}) = 'array' AND {column} <@ '[{listed}]'", name=column)


def default_word(word: StrEnum) -> Any:
    """Server default for a column that holds a word."""
    return text(f"'{word.value}'")
