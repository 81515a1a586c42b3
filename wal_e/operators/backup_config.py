"""The configuration files outside of a data directory, on their way into its backup.

They are read before anything is stored, and pushed as one object beside the partitions: what extracts partitions, the
original WAL-E among others, puts all of them into the data directory, where these files have no place.
"""

from __future__ import annotations

import os
from io import RawIOBase

from wal_e.archive import layout
from wal_e.archive.archive import Archive
from wal_e.archive.sentinel import StoredConfiguration
from wal_e.errors import ServerRefused, local_error
from wal_e.log import Logger
from wal_e.operators.backup_window import Window
from wal_e.operators.measure import Measured
from wal_e.postgres.cluster import Cluster
from wal_e.postgres.config_files import CONFIG_FILE, ConfigFile, Configuration, outside, read_configuration
from wal_e.postgres.files import FileEntry
from wal_e.retry import retrying
from wal_e.tar.writer import write_contents

LOG = Logger(__name__)


def gathered(cluster: Cluster, window: Window) -> Configuration | None:
    """Read what lies outside the data directory; None when nothing does.

    Raises: UsageError naming what cannot be taken; ServerRefused when the server does not say where its files are; BackupInterrupted.
    """
    places = window.configuration()
    if CONFIG_FILE not in places:
        raise ServerRefused(
            "the server does not say where its configuration is",
            "Its role may not see config_file, hba_file and ident_file.",
            "Connect as a superuser (PGUSER), or GRANT pg_read_all_settings to the role; or leave out --include-config. Nothing was stored.",
        )
    found = read_configuration(cluster.path, places)
    if not found.files:
        LOG.info("the whole configuration is in the data directory", "It is part of every backup.", action="backup-push")
        return None
    return found


def tell_left_out(cluster: Cluster, window: Window) -> None:
    """Log which of the server's files are not in the data directory, and so not in the backup. Raises: ServerRefused, BackupInterrupted."""
    left_out = outside(cluster.path, window.configuration())
    if left_out:
        LOG.info(
            "the configuration is not in the backup",
            f"It is outside of the data directory: {', '.join(left_out)}.",
            "backup-push --include-config takes it along.",
            action="backup-push",
        )


def push_configuration(archive: Archive, backup: str, configuration: Configuration) -> StoredConfiguration:
    """Store the files of a backup's configuration. Raises: CodecFailed, LocalFileError, StoreError."""
    key = layout.config_key(backup, archive.pipeline.suffix)
    contents = [*_directories(configuration), *((_entry(file), file.content) for file in configuration.files)]

    def attempt() -> Measured:
        measured = Measured(archive.pipeline.encode(lambda stream: _write(stream, contents)))
        archive.store.put(key, measured)
        return measured

    stored = retrying(attempt, archive.push_policy)
    return StoredConfiguration(key, stored.size, stored.sha256, tuple(file.path for file in configuration.files), configuration.places)


def _write(stream: RawIOBase, contents: list[tuple[FileEntry, bytes]]) -> None:
    write_contents(stream, contents)


def _entry(file: ConfigFile) -> FileEntry:
    return FileEntry(file.path.lstrip("/"), "file", len(file.content), file.mode, file.mtime, file.uid, file.gid)


def _directories(configuration: Configuration) -> list[tuple[FileEntry, bytes]]:
    """The directories that are included and those above the files, with their owners and modes, outermost first."""
    found: dict[str, FileEntry] = {}
    for innermost in (*configuration.directories, *(os.path.dirname(file.path) for file in configuration.files)):
        path = innermost
        while path != "/" and path not in found:
            try:
                status = os.stat(path)
            except OSError as error:
                raise local_error(error, f"reading {path}") from None
            found[path] = FileEntry(path.lstrip("/"), "directory", 0, status.st_mode & 0o7777, int(status.st_mtime), status.st_uid, status.st_gid)
            path = os.path.dirname(path)
    return [(found[path], b"") for path in sorted(found)]
