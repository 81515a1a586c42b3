"""PostgreSQL's own ``backup_manifest``, so that ``pg_verifybackup`` accepts a restored directory.

Format: JSON with one line per file; the last line is the SHA-256 of all lines before it. CRC-32C is
written as its four bytes in little-endian order. Version 1 in PostgreSQL 13 to 16, version 2
with the system identifier from 17 on. Source: ``backup_manifest.c`` and the documentation's chapter
"Backup Manifest Format"; compared with what ``pg_basebackup`` 15 and 18 write.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import google_crc32c

from wal_e.errors import local_error
from wal_e.postgres.wal import Lsn

FIRST_WITH_MANIFEST = 13
FIRST_WITH_VERSION_2 = 17
NAME = "backup_manifest"
REWRITTEN = "tablespace_map"


class ListedFile(NamedTuple):
    """One file of the backup: path, size in bytes, modification time in seconds, CRC-32C of its content."""

    path: str
    size: int
    mtime: int
    crc32c: int


class WalRange(NamedTuple):
    """The WAL that makes the copy consistent."""

    timeline: int
    start: Lsn
    stop: Lsn


def write_backup_manifest(directory: str, major: int, system_identifier: int, wal: WalRange, files: Iterable[ListedFile]) -> None:
    """Write the manifest of a restored directory; the tablespace map is summed up as it is there now.

    Raises: LocalFileError, DiskFull.
    """
    path = os.path.join(directory, NAME)
    digest = hashlib.sha256()
    owner = os.stat(directory)
    try:
        with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as manifest:
            for line in _lines(major, system_identifier, wal, _as_they_are(directory, files)):
                digest.update(line)
                manifest.write(line)
            manifest.write(f'"Manifest-Checksum": "{digest.hexdigest()}"}}\n'.encode())
            if os.geteuid() == 0:
                os.fchown(manifest.fileno(), owner.st_uid, owner.st_gid)
    except OSError as error:
        raise local_error(error, f"writing {path}") from None


def _lines(major: int, system_identifier: int, wal: WalRange, files: Iterator[ListedFile]) -> Iterator[bytes]:
    if major >= FIRST_WITH_VERSION_2:
        yield f'{{ "PostgreSQL-Backup-Manifest-Version": 2,\n"System-Identifier": {system_identifier},\n"Files": ['.encode()
    else:
        yield b'{ "PostgreSQL-Backup-Manifest-Version": 1,\n"Files": ['
    separator = b"\n"
    for file in files:
        yield separator + json.dumps(_document(file)).encode()
        separator = b",\n"
    ranges = json.dumps({"Timeline": wal.timeline, "Start-LSN": str(wal.start), "End-LSN": str(wal.stop)})
    yield f'\n],\n"WAL-Ranges": [\n{ranges}\n],\n'.encode()


def _as_they_are(directory: str, files: Iterable[ListedFile]) -> Iterator[ListedFile]:
    """The files as listed, but the map as it was rewritten; WAL that came along is not listed."""
    for file in files:
        if file.path != REWRITTEN:
            if not file.path.startswith("pg_wal/"):
                yield file
            continue
        rewritten = os.path.join(directory, REWRITTEN)
        if os.path.exists(rewritten):
            with open(rewritten, "rb") as stream:
                content = stream.read()
            yield file._replace(size=len(content), crc32c=google_crc32c.value(content))


def _document(file: ListedFile) -> dict[str, Any]:
    try:
        file.path.encode()
        document: dict[str, Any] = {"Path": file.path}
    except UnicodeEncodeError:
        document = {"Encoded-Path": file.path.encode("utf-8", "surrogateescape").hex()}
    modified = time.strftime("%Y-%m-%d %H:%M:%S GMT", time.gmtime(file.mtime))
    checksum = file.crc32c.to_bytes(4, "little").hex()
    return {**document, "Size": file.size, "Last-Modified": modified, "Checksum-Algorithm": "CRC32C", "Checksum": checksum}
