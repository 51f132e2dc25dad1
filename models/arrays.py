"""Long lists of values as one parameter each: PostgreSQL's own text form of an array.

The driver writes a list as an expression of as many constants, which takes longer to write and to parse than
500 rows take to insert.
"""

import datetime
from collections.abc import Iterable


def array(values: Iterable[object]) -> str:
    """``{…}``, for a parameter that the statement casts to an array. Text holds no NUL."""
    return f"{{{','.join(map(_element, values))}}}"


def _element(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, bytes):
        return f'"\\\\x{value.hex()}"'
    if isinstance(value, datetime.datetime):
        return f'"{value.isoformat()}"'
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    raise TypeError(f"{value!r} has no place in an array.")
