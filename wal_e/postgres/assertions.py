"""SQL that must hold: the statements of a file, and what it means that one does not.

A statement fails that raises an error, and so does one whose result is a single column of type boolean, unless it has
rows and all of them are true. Any other result is none of our business.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg

from wal_e.errors import DrillFailed
from wal_e.postgres.connection import said

SHOWN = 300  # characters of a statement in an error

_BOOLEAN_OID = 16

# What hides a semicolon. psql knows more (BEGIN ATOMIC); that is for files that only ask.
_SCANNER = re.compile(
    r"""--[^\n]*
      | \b[Ee]'(?:[^'\\]|''|\\.)*'
      | '(?:[^']|'')*'
      | "(?:[^"]|"")*"
      | (?<![\w$])(?P<quote>\$(?:[^\W\d]\w*)?\$).*?(?P=quote)
      | ;
      | /\*""",
    re.VERBOSE | re.DOTALL,
)
_COMMENT = re.compile(r"/\*|\*/")


def statements_of(text: str) -> list[str]:
    """Split SQL into its statements, without their semicolons; those with comments only are left out."""
    found, begin, meat = [], 0, False
    position = 0
    for kind, start, end in _pieces(text):
        meat = meat or bool(text[position:start].strip()) or kind not in ("comment", ";")
        position = end
        if kind == ";":
            if meat:
                found.append(text[begin:start].strip())
            begin, meat = end, False
    if meat or text[position:].strip():
        found.append(text[begin:].strip())
    return found


def _pieces(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield comments, quoted texts and semicolons with where they begin and end."""
    position = 0
    while match := _SCANNER.search(text, position):
        start, token = match.start(), match[0]
        if token == "/*":
            position = _end_of_comment(text, start)
            yield "comment", start, position
            continue
        position = match.end()
        yield ("comment" if token.startswith("--") else token if token == ";" else "quoted"), start, position


def _end_of_comment(text: str, start: int) -> int:
    """Where a comment ends; they nest."""
    depth, position = 1, start + 2
    while depth and (match := _COMMENT.search(text, position)):
        depth += 1 if match[0] == "/*" else -1
        position = match.end()
    return len(text) if depth else position


def require(connection: psycopg.Connection[tuple[Any, ...]], statement: str) -> None:
    """Run a statement that must hold. Raises: DrillFailed naming it."""
    try:
        cursor = connection.execute(statement.encode())
        rows = cursor.fetchall() if cursor.description else []
    except psycopg.Error as error:
        raise _failed(statement, "raised an error", said(error)) from None
    if cursor.description and len(cursor.description) == 1 and cursor.description[0].type_code == _BOOLEAN_OID:
        if not rows:
            raise _failed(statement, "is not true", "It returned no row.")
        if not all(row[0] for row in rows):
            raise _failed(statement, "is not true", f"It returned {'null' if any(row[0] is None for row in rows) else 'false'}.")


def _failed(statement: str, what: str, detail: str) -> DrillFailed:
    shown = " ".join(statement.split())
    return DrillFailed(
        f"an assertion {what}",
        f"The statement was: {shown[:SHOWN]}{'...' if len(shown) > SHOWN else ''}. {detail}",
        "Look into the database with --keep. Either the backup does not hold what it should, or the statement expects too much.",
    )
