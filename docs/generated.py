"""Tables that are written by the program itself: settings, and errors with their statuses.

A small Sphinx extension: a line ``.. generated:: settings`` or ``.. generated:: errors`` in a page is replaced
by a table made from ``wal_e.settings`` or ``wal_e.errors``, each time the pages are built.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from wal_e import errors
from wal_e.settings import PREFIX_DOC, PREFIXES, TABLE, VENDOR_TABLE, Setting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sphinx.application import Sphinx


def settings_table() -> str:
    """Render every variable with its default and its meaning."""
    prefixes = [[_literals(PREFIXES.values()), "none", PREFIX_DOC]]
    return _table(_SETTING, [30, 15, 55], prefixes + _rows(TABLE))


def vendor_settings_table() -> str:
    """Render the variables that other tools of a vendor read, too."""
    return _table(_SETTING, [30, 15, 55], _rows(VENDOR_TABLE))


_SETTING = ["Variable", "Default", "Meaning"]


def _rows(table: Iterable[Setting]) -> list[list[str]]:
    return [[_literals([row.variable]), f"``{row.default}``" if row.default else "none", row.doc] for row in table]


def errors_table() -> str:
    """Render every class of error with its exit status, and whether it is tried again."""
    rows = [[f"``{kind.__name__}``", str(kind.status), "yes" if kind.transient else "", _summary(kind)] for kind in _kinds(errors.WaleError)]
    return _table(["Error", "Status", "Passing", "Meaning"], [25, 10, 10, 55], rows)


TABLES = {"settings": settings_table, "vendor-settings": vendor_settings_table, "errors": errors_table}


def _kinds(base: type[errors.WaleError]) -> Iterator[type[errors.WaleError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


def _summary(kind: type[errors.WaleError]) -> str:
    return (kind.__doc__ or "").split("\n\n")[0]


def _literals(names: Iterable[str]) -> str:
    return ", ".join(f"``{name}``" for name in names)


def _table(header: list[str], widths: list[int], rows: list[list[str]]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {' '.join(map(str, widths))}", ""]
    for row in [header, *rows]:
        lines += [f"   {'*' if column == 0 else ' '} - {cell}" for column, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


def fill_in(text: str) -> str:
    """Replace the lines that ask for a table."""
    return re.sub(r"^\.\. generated:: ([\w-]+)$", lambda asked: TABLES[asked[1]](), text, flags=re.MULTILINE)


def _on_source_read(_app: Sphinx, _page: str, source: list[str]) -> None:
    source[0] = fill_in(source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", _on_source_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
