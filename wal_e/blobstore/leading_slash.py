"""Whether the names of a container's objects begin with a slash.

WAL-E took the path of its prefix literally, so in Google Cloud Storage and in Swift it stored
``/path/key`` where every other tool, and this one, would store ``path/key``. An archive that has
such names is read, and goes on being written, with them, so that WAL-E can still read it; any other
prefix is written without. What is there decides, once per process, when the first name is needed.
"""

from __future__ import annotations

from threading import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class LeadingSlash:
    """Where the keys below a path begin.

    ``path`` is that of a :class:`~wal_e.blobstore.url.StoreUrl`: "" or ``/some/path``. ``any_object``
    says whether the container holds an object whose name begins with the given text: one listing of
    one name. What it raises is passed on, and the next call asks again.
    """

    def __init__(self, path: str, any_object: Callable[[str], bool]) -> None:
        self._path = path
        self._any_object = any_object
        self._lock = Lock()
        self._root: str | None = None

    def root(self) -> str:
        """What stands before a key in an object's name: ``path/``, ``/path/``, or nothing."""
        if self._root is None:
            with self._lock:
                if self._root is None:
                    self._root = self._decided()
        return self._root

    def _decided(self) -> str:
        own = f"{self._path}/"
        plain = own.removeprefix("/")
        return own if self._any_object(own) else plain
