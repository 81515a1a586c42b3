"""The door to python-swiftclient: the one place where it is imported.

It would import python-keystoneclient too where that is installed, which takes twice the time of all the rest, and
every pushed segment would pay for it. We sign in at Keystone with keystoneauth1 alone (``keystone.py``), so it is told
that there is none.
"""

from __future__ import annotations

import sys

_HIDDEN = "keystoneclient"

if _HIDDEN in sys.modules:
    from swiftclient import client
else:
    sys.modules[_HIDDEN] = None  # type: ignore[assignment]  # Python's own way to say that a module cannot be imported
    try:
        from swiftclient import client
    finally:
        del sys.modules[_HIDDEN]

__all__ = ["client"]
