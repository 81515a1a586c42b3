"""The files of a partition, looked at as they stream by and written nowhere: what a verification reads into.

A partition that arrives damaged is read a second time into the same place, so whatever is told twice counts once.
"""

from __future__ import annotations

import os
import tarfile

from wal_e.errors import local_error
from wal_e.postgres.page import PageRanges, PageScan, relation_file

MAX_KEPT_BYTES = 1 << 20  # of a file that is kept; none of them is so large


class Inspection:
    """Takes what a :class:`~wal_e.tar.reader.PartitionReader` finds in one partition.

    Files named in ``keep`` are afterwards in ``kept``. With a block size, pages are looked at: ``pages`` is how many,
    and ``wrong`` which of them have a wrong checksum.
    """

    def __init__(self, keep: frozenset[str] = frozenset(), block_size: int | None = None) -> None:
        self._keep = keep
        self._block_size = block_size
        self._scans: dict[str, PageScan] = {}
        self._scan: PageScan | None = None
        self._content: bytearray | None = None
        self.kept: dict[str, bytearray] = {}
        self.wrong = PageRanges()

    @property
    def pages(self) -> int:
        """How many pages were looked at."""
        return sum(scan.pages for scan in self._scans.values())

    def open_file(self, name: str) -> int:
        """Begin a file; the descriptor leads nowhere."""
        self._content = self.kept.setdefault(name, bytearray()) if name in self._keep else None
        if self._content is not None:
            self._content.clear()
        self._scan = self._scan_of(name)
        try:
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise local_error(error, f"opening {os.devnull}") from None

    def write(self, _fd: int, data: bytes) -> None:
        """Look at the next bytes of the file."""
        if self._scan is not None:
            self._scan.feed(data)
        if self._content is not None:
            self._content += data[: MAX_KEPT_BYTES - len(self._content)]

    def finish_file(self, fd: int, info: tarfile.TarInfo) -> None:
        """There is nothing to finish."""

    def make_directory(self, name: str, info: tarfile.TarInfo) -> None:
        """There is nothing to make."""

    def make_symlink(self, name: str, info: tarfile.TarInfo) -> None:
        """There is nothing to make."""

    def _scan_of(self, name: str) -> PageScan | None:
        file = relation_file(name) if self._block_size else None
        if file is None or not self._block_size:
            return None
        scan = PageScan(file.first_block(self._block_size), self._block_size, lambda block, _page: self.wrong.add(file.relation, block, block))
        self._scans[name] = scan
        return scan
