"""The processes of one stream, started in a row, and how they end.

A stream has ended well only when every process was reaped with status 0: a killed codec looks
like a clean end of file, and what was written before looks whole.
"""

from __future__ import annotations

import io
import os
import signal

from wal_e.errors import CodecFailed, ConfigurationError, DamageError, DiskFull, WaleError
from wal_e.pipeline import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wal_e.pipeline.process import Process, Running, Waits
    from wal_e.pipeline.stage import Stage

_OF_DATA = 2  # the highest status with which lzop and gpg speak of their input; a shell or a loader that could not even begin has others


class Chain:
    """The processes, descriptors and the native thread of one stream, and how they end."""

    def __init__(self, waits: Waits, pipe_bytes: int) -> None:
        self._waits = waits
        self._pipe_bytes = pipe_bytes
        self._ours: set[int] = set()
        self._processes: list[Process] = []
        self._beside: Running | None = None
        self._coded: int | None = None

    def pipe(self) -> tuple[int, int]:
        """Make a pipe; both ends are closed with the chain unless released."""
        reader, writer = os.pipe()
        self._ours |= {reader, writer}
        process.set_pipe_size(writer, self._pipe_bytes)
        return reader, writer

    def pipe_out(self) -> int:
        """Make the pipe that we read coded bytes from; return the end for the last process."""
        self._coded, writer = self.pipe()
        self._waits.own(self._coded)
        return writer

    def release(self, fd: int) -> int:
        """Hand a descriptor over; the chain no longer closes it."""
        self._ours.discard(fd)
        return fd

    def start(self, commands: list[tuple[Stage, tuple[str, ...]]], stdin: int, stdout: int) -> int:
        """Start the programs, each reading from the one before; return our end of the last pipe."""
        source = stdin
        for position, (_, argv) in enumerate(commands):
            last = position == len(commands) - 1
            reader, writer = (-1, stdout) if last else self.pipe()
            started = process.start(argv, source, writer)
            self._waits.watch(started)
            self._processes.append(started)
            for used in (source, writer):
                if used in self._ours:
                    os.close(self.release(used))
            source = reader
        return self._coded if self._coded is not None else -1

    def start_decoding(self, commands: list[tuple[Stage, tuple[str, ...]]], stdout: int) -> int:
        """Start the programs on a new pipe and return the end we feed; with no program, ``stdout`` itself."""
        if not commands:
            self._waits.own(stdout)
            return stdout
        source, sink = self.pipe()
        self._waits.own(sink)
        self.start(commands, source, stdout)
        return sink

    def beside(self, work: Callable[[io.RawIOBase], None], fd: int, mode: str) -> Running:
        """Run the raw side in a native thread, which closes its descriptor itself."""
        stream = io.FileIO(self.release(fd), mode)

        def run() -> None:
            with stream:
                work(stream)

        self._beside = self._waits.start(run)
        return self._beside

    def feed(self, sink: int, chunks: Iterator[bytes]) -> None:
        """Write all chunks and close; a reader that went away is judged later, by its status."""
        try:
            for chunk in chunks:
                self._waits.write(sink, chunk)
        except BrokenPipeError:
            pass
        if sink in self._ours:
            os.close(self.release(sink))

    def finish(self, key: str = "", abandoned: WaleError | None = None) -> None:
        """Reap every process; raise what the first bad status means, passing over those that only lost their reader."""
        worst: WaleError | None = None
        cut_off: WaleError | None = None
        while self._processes:
            one = self._processes[0]
            status = self._waits.reap(one)
            del self._processes[0]  # only now: when a signal ends the wait, cancel() must know the process
            said = process.stderr_text(one)
            os.close(one.stderr)
            if status == -signal.SIGPIPE or "Broken pipe" in said:
                cut_off = cut_off or _explained(one.name, status, said, key)
            elif status != 0:
                worst = worst or _explained(one.name, status, said, key)
        if abandoned is None:
            worst = worst or cut_off
        if worst is not None:
            raise worst

    def cancel(self) -> None:
        """End what still runs: close our ends, kill the processes, join the thread, reap."""
        for fd in self._ours:
            os.close(fd)
        self._ours.clear()
        for one in self._processes:
            try:
                os.kill(one.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self._beside is not None:
            self._beside.join()
        for one in self._processes:
            try:
                self._waits.reap(one)
            except ChildProcessError:
                pass  # the signal that brought us here came when finish() had just reaped it
            os.close(one.stderr)
        self._processes = []


def _explained(name: str, status: int, said: str, key: str) -> WaleError:
    """Translate a codec's bad ending; ``key`` is given when it was decoding."""
    how = f"{name} was ended by signal {-status}" if status < 0 else f"{name} ended with status {status}"
    words = "" if not said or "Inappropriate ioctl" in said else f" and said: {said}"
    if any(full in said for full in ("No space left", "Disk quota exceeded", "File too large")) or status == -signal.SIGXFSZ:
        return DiskFull(
            f"no space left for what {name} writes", f"{how}{words}.", "Free some space, or raise the limit on the size of files, and run it again."
        )
    if status < 0:
        return CodecFailed(f"{name} was killed", f"{how}{words}.", "See whether the machine ran out of memory (dmesg), then run it again.")
    if "No public key" in said or "unusable public key" in said:
        return ConfigurationError("gpg cannot encrypt for this key", f"{how}{words}.", "Import the public key that WALE_GPG_KEY_ID names for this user.")
    if "No secret key" in said:
        return ConfigurationError(f"{key} is encrypted for another key", f"{how}{words}.", "Import the secret key of the recipient for this user.")
    if not key or status > _OF_DATA:
        return CodecFailed(f"{name} failed", f"{how}{words}.")
    return DamageError(
        f"{key} cannot be decoded",
        f"{how}{words or ', as it does when data is missing or changed'}.",
        "The object was damaged or cut after it was stored; use another backup, or another copy of the store.",
    )
