"""Why a table cannot be read, wholly or from some place on.

TableError            the message is the end of a sentence that begins with the table's name
├── UnfitTableError   nothing of it is wanted: the wrong columns, no text, several arrays
└── BrokenTableError  it breaks off here; what was read before is right
"""


class TableError(Exception):
    """A table cannot be read."""


class UnfitTableError(TableError):
    """It is not what was asked for, as a whole."""


class BrokenTableError(TableError):
    """It cannot be read any further."""
