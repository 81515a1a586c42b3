"""The configuration that a backup keeps from outside its data directory, brought back into a directory of its own.

Never to where it was: what is there now may serve another cluster, and is newer. It is verified when the restore is planned, and
written when all else is there, so that a restore that fails leaves the directory as it was.
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from wal_e.archive.archive import Archive
from wal_e.archive.catalog import Backup
from wal_e.archive.manifest import StoredPartition
from wal_e.archive.sentinel import StoredConfiguration
from wal_e.errors import TargetRefused, UsageError, local_error
from wal_e.operators.backup_fetch import Part, fetch_part
from wal_e.operators.restore_target import TablespaceChoice, Target, absolute, require_empty
from wal_e.progress import Progress
from wal_e.tar.inspection import Inspection
from wal_e.tar.reader import Sink


class ConfigTarget(NamedTuple):
    """A checked directory for the configuration of a backup."""

    path: str
    stored: StoredConfiguration

    @classmethod
    def checked(cls, archive: Archive, backup: Backup, path: str, data_directory: str) -> ConfigTarget:
        """Refuse a directory that is not for this; see that what goes there is whole.

        Raises: UsageError for a backup that keeps no configuration; TargetRefused, LocalFileError, DamageError, StoreError.
        """
        stored = kept_configuration(backup)
        if stored is None:
            raise UsageError(
                f"{backup.name} keeps no configuration",
                "It was made without --include-config, or all of its configuration was in the data directory.",
                "Leave out --config-to, or take --backup NAME of one that keeps it: see configuration in wal-e backup-list --json.",
            )
        path = absolute(path)
        require_empty(path, "directory for the configuration")
        one, other = (f"{os.path.realpath(place)}/" for place in (path, data_directory))
        if one.startswith(other) or other.startswith(one):
            raise TargetRefused(
                f"{path} is not apart from the data directory", f"The data are to go to {os.path.abspath(data_directory)}.", "Choose another --config-to."
            )
        fetch_configuration(archive, stored, Inspection())
        return cls(path, stored)

    def place(self, archive: Archive, target: Target) -> None:
        """Write the files at their absolute paths below the directory; a new one gets the owner of the data directory.

        Raises: DamageError, DiskFull, LocalFileError, StoreError.
        """
        is_new = not os.path.isdir(self.path)
        with Target(self.path, {}, TablespaceChoice(False, None)).filling() as destination:
            if is_new and os.geteuid() == 0:
                try:
                    owner = os.stat(target.path)
                    os.chown(self.path, owner.st_uid, owner.st_gid)
                except OSError as error:
                    raise local_error(error, f"making {self.path}") from None
            fetch_configuration(archive, self.stored, destination)
            destination.finish()
            archive.waits.offload(destination.sync)

    def settings(self, data_directory: str) -> dict[str, str]:
        """What a server needs on its command line to use these files, and none of what they name outside of them."""
        places = {
            name: os.path.join(self.path, place.lstrip("/")) if os.path.isabs(place) else os.path.join(data_directory, place)
            for name, place in self.stored.places.items()
        }
        # Else the server starts on the data directory that the configuration names, and takes over the file of another server.
        return {**places, "data_directory": data_directory, "external_pid_file": ""}


def kept_configuration(backup: Backup) -> StoredConfiguration | None:
    """What a backup keeps of the configuration outside its data directory. Raises: DamageError."""
    facts = backup.readable().facts
    return facts.configuration if facts else None


def fetch_configuration(archive: Archive, stored: StoredConfiguration, sink: Sink) -> None:
    """Read the object, and compare it with the sentinel. Raises: DamageError, DiskFull, LocalFileError, StoreError."""
    expected = StoredPartition(0, stored.key, stored.size, stored.sha256, len(stored.files))
    fetch_part(archive, Part(stored.key, expected, None), sink, Progress(stored.size, time.monotonic))
