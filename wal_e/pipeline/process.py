"""Codec processes and how to wait for them: the blocking twin, without any import to speak of.

Processes are started with ``posix_spawn`` on pipes from ``os.pipe()``. What waits - reading,
writing, reaping, running code beside - goes through an object with the methods of
:class:`Waits`; :class:`Blocking` blocks the whole process, its twin in
:mod:`wal_e.pipeline.lanes` lets other lanes go on.
"""

from __future__ import annotations

import os
import sys

from wal_e.errors import ToolMissing
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Protocol, TypeVar

    T = TypeVar("T")

    class Running(Protocol):
        """Code that runs beside the caller."""

        def join(self) -> BaseException | None:
            """Wait for its end; return what it raised."""

    class Waits(Protocol):
        """All that can wait. File descriptors belong to the caller."""

        lanes: int

        def own(self, fd: int) -> None:
            """Prepare our end of a pipe for read() and write()."""

        def read(self, fd: int, size: int) -> bytes:
            """Return up to ``size`` bytes, b"" at the end."""

        def write(self, fd: int, data: bytes) -> None:
            """Write all of it."""

        def watch(self, process: Process) -> None:
            """Take note of a process that was started this moment."""

        def reap(self, process: Process) -> int:
            """Wait for a watched process; return its exit status, negative for a signal."""

        def start(self, work: Callable[[], None]) -> Running:
            """Run code beside the caller, in a native thread."""

        def offload(self, call: Callable[[], T]) -> T:
            """Run one blocking call so that nothing else stands still."""

        def run(self, work: Callable[[str], object], items: Iterable[str]) -> Iterator[Ended]:
            """Work on items in as many lanes as there are; yield what became of each, in the order in which they end.

            Items are taken as lanes get free. Closing the iterator ends the lanes; each cleans up.
            """


class Process(NamedTuple):
    """A started program: its name, its process id and a memory file with its stderr."""

    name: str
    pid: int
    stderr: int


class Ended(NamedTuple):
    """What became of the work on one item: nothing, or the error that it raised."""

    item: str
    error: Exception | None


_CLOSED_SIGNALS = (13, 25)  # SIGPIPE, SIGXFSZ: Python ignores them, programs must not inherit that


def start(argv: tuple[str, ...], stdin: int, stdout: int) -> Process:
    """Start a program in a process group of its own, with the given ends of pipes or files.

    Its messages are in English (``LC_ALL=C``) and are kept in memory for error texts.

    Raises: ToolMissing when the program is not on PATH.
    """
    stderr = os.memfd_create(argv[0])
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in ((0, stdin), (1, stdout), (2, stderr))]
    try:
        pid = os.posix_spawnp(argv[0], argv, {**os.environ, "LC_ALL": "C"}, file_actions=actions, setpgroup=0, setsigdef=_CLOSED_SIGNALS)
    except OSError as error:
        os.close(stderr)
        raise ToolMissing(
            f"{argv[0]} cannot be started",
            f"The system says: {error.strerror}. PATH is {os.environ.get('PATH', '')}.",
            f"Install {argv[0]} (apt-get install {'gnupg' if argv[0] == 'gpg' else argv[0]}), or correct PATH for this command.",
        ) from None
    return Process(argv[0], pid, stderr)


def stderr_text(process: Process) -> str:
    """Return what the program wrote to stderr, at most 2000 characters of it."""
    return os.pread(process.stderr, 2000, 0).decode(errors="replace").strip()


def set_pipe_size(fd: int, size: int) -> None:
    """Ask for a larger pipe; a refusal (the user's share is used up) is fine."""
    import fcntl

    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    except OSError:
        pass


class Blocking:
    """Waits by blocking the process; the only way on the paths of a single segment."""

    lanes = 1

    def own(self, fd: int) -> None:
        """Leave the descriptor as it is."""

    def read(self, fd: int, size: int) -> bytes:
        """Return up to ``size`` bytes, b"" at the end."""
        return os.read(fd, size)

    def write(self, fd: int, data: bytes) -> None:
        """Write all of it."""
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def watch(self, process: Process) -> None:
        """Take no note: nobody else reaps."""

    def reap(self, process: Process) -> int:
        """Wait for the process; return its exit status, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])

    def start(self, work: Callable[[], None]) -> Running:
        """Run code beside the caller, in a native thread."""
        return _Thread(work)

    def offload(self, call: Callable[[], T]) -> T:
        """Call it."""
        return call()

    def run(self, work: Callable[[str], object], items: Iterable[str]) -> Iterator[Ended]:
        """Work on one item after the other."""
        for item in items:
            try:
                work(item)
            except Exception as error:
                yield Ended(item, error)
            else:
                yield Ended(item, None)


class _Thread:
    def __init__(self, work: Callable[[], None]) -> None:
        import threading

        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException:
            self._error = sys.exc_info()[1]

    def join(self) -> BaseException | None:
        self._thread.join()
        return self._error
