"""``NamedTuple`` without the price of ``typing``.

``import typing`` costs about ten milliseconds, as much as the interpreter itself, and
``wal-push`` and ``wal-fetch`` are started once per segment. Type checkers see
``typing.NamedTuple``; at run time a small metaclass builds the same kind of class.
"""

from __future__ import annotations

from collections import namedtuple

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:

    class _Meta(type):
        def __new__(meta, name, bases, members):  # noqa: ANN001, ANN204  # types are for the branch above
            if not bases:
                return super().__new__(meta, name, bases, members)
            fields = members.pop("__annotations__", {})
            defaults = [members.pop(field) for field in fields if field in members]
            base = namedtuple(name, fields, defaults=defaults, module=members["__module__"])
            members.setdefault("__slots__", ())
            return type(name, (base,), members)

    class NamedTuple(metaclass=_Meta):
        """Base of immutable records; fields are the annotations, in order."""
