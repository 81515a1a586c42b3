"""News from ``archive_status``: the names that become ready, from inotify, while the directory comes and goes.

Other programs learn of it by listing; the archiver lists too, but seldom, since events can be lost: when the
kernel's queue overflows, or on a network file system that is written by another host.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from threading import Thread

from inotify_simple import INotify, flags

_NEWS = flags.CREATE | flags.MOVED_TO
_READY = ".ready"


class Watch:
    """Calls with the names of WAL files that become ready in one directory; from a thread of its own.

    Raises, when made: OSError where the system has no more watches to give.
    """

    def __init__(self, directory: str, news: Callable[[list[str]], None]) -> None:
        self._directory = directory
        self._news = news
        self._inotify = INotify(nonblocking=True)
        self._armed: tuple[int, int] | None = None
        self._descriptor = -1
        Thread(target=self._listen, daemon=True).start()

    def arm(self) -> bool:
        """Watch the directory that has the name now; True when it is another than before, so that it should be listed.

        Raises: OSError.
        """
        try:
            found = os.stat(self._directory)
            place = (found.st_dev, found.st_ino)
            if place == self._armed:
                return False
            former, self._descriptor = self._descriptor, self._inotify.add_watch(self._directory, _NEWS)
        except FileNotFoundError:
            self._armed = None
            return False
        self._armed = place
        if former not in (-1, self._descriptor):
            try:
                self._inotify.rm_watch(former)
            except OSError:
                pass  # it went with its directory
        return True

    def _listen(self) -> None:
        while True:
            select.select([self._inotify.fd], [], [])
            events = list(self._inotify.read(timeout=0))
            if any(event.mask & flags.IGNORED and event.wd == self._descriptor for event in events):
                self._armed = None  # the directory is gone; the next one may get its inode number
            names = [event.name.removesuffix(_READY) for event in events if event.name.endswith(_READY)]
            if names:
                self._news(names)
