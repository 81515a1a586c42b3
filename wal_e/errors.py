"""Every error a user can meet, in one tree.

::

    WaleError                    message, detail, hint; an exit status; transient or not
    |-- UsageError           2   the command line asks for something that cannot be
    |-- ConfigurationError   2   a setting is missing, contradictory or unusable
    |   `-- ToolMissing      2   lzop or gpg is not on PATH
    |-- StoreError           1   the store did not do what was asked
    |   |-- BlobNotFound     1   the store answered: no such key
    |   |-- BlobExists       1   a create met a key that is there
    |   |-- BlobFrozen       1   the object is in an archive tier
    |   |-- StoreForbidden   1   credentials are known and do not suffice
    |   |-- StoreUnavailable 1   network, overload, vanished directory        (transient)
    |   `-- StoreMisconfigured 2 no such bucket or directory, wrong region, bad credentials
    |-- BackupNotFound       1   no such backup under this prefix
    |-- DamageError          2   stored bytes are not what was stored
    |-- NotACluster          2   the directory is not a PostgreSQL data directory
    |-- WrongCluster         2   the server, the directory and the prefix do not agree
    |-- ServerUnavailable    1   no connection to PostgreSQL                   (transient)
    |-- ServerRefused        2   PostgreSQL answered with an error
    |-- BackupInterrupted    1   the backup session or its conditions were lost
    |-- ArchiveTimeout       1   WAL that the backup needs did not arrive in time
    |-- LockHeld             1   another command works on the same cluster
    |-- WalRefused           2   a file is not the WAL segment its name says
    |-- WalConflict          2   the store holds other content under this name
    |-- WalGap               2   WAL that something needs is not in the store
    |-- WalDropped           2   WAL was given up without being stored, as was asked for
    |-- BacklogAlarm         1   more WAL waits to be archived than the limit allows
    |-- DrillFailed          2   what a drill restored is not what was asked of it
    |-- TargetRefused        2   the place to restore into cannot be used
    |-- DiskFull             2   no space left                                 (transient)
    |-- LocalFileError       1   a local file could not be read or written
    `-- CodecFailed          1   lzop or gpg died                              (transient)

Status 1 says "may succeed later", 2 says "will not, until somebody changes something".
``wal-fetch`` maps the tree onto its own statuses, see :mod:`wal_e.operators.wal_fetch`.
The message is lower-case without a full stop; detail and hint are sentences.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_LATER = 1
EXIT_NEVER = 2


class WaleError(Exception):
    """Base of all errors that are explained to a user instead of shown as a traceback."""

    status = EXIT_NEVER
    transient = False

    def __init__(self, message: str, detail: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}. {self.detail}" if self.detail else self.message


class UsageError(WaleError):
    """The command line asks for something that cannot be."""


class ConfigurationError(WaleError):
    """A setting is missing, contradictory or unusable."""


class ToolMissing(ConfigurationError):
    """An external program is not on PATH."""


class StoreError(WaleError):
    """The store did not do what was asked."""

    status = EXIT_LATER


class BlobNotFound(StoreError):
    """The store answered that there is no such key."""


class BlobExists(StoreError):
    """A create met a key that is already there."""


class BlobFrozen(StoreError):
    """The object is in an archive tier and must be restored first."""


class StoreForbidden(StoreError):
    """The credentials are known and do not suffice."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, is overloaded, or went away halfway.

    ``wait_s`` is how many seconds to wait before the next attempt, where that is known: what the store
    asked for, or 0 for a connection that had merely gone stale.
    """

    transient = True
    wait_s: float | None = None


class StoreMisconfigured(StoreError):
    """The place that the prefix names does not exist or cannot be used."""

    status = EXIT_NEVER


class BackupNotFound(WaleError):
    """No such backup under this prefix."""

    status = EXIT_LATER


class DamageError(WaleError):
    """Stored bytes are not what was stored."""


class NotACluster(WaleError):
    """The directory is not a PostgreSQL data directory."""


class WrongCluster(WaleError):
    """The server, the data directory and the prefix belong to different clusters."""


class ServerUnavailable(WaleError):
    """No connection to PostgreSQL."""

    status = EXIT_LATER
    transient = True


class ServerRefused(WaleError):
    """PostgreSQL answered a command with an error."""


class BackupInterrupted(WaleError):
    """The backup session, or what it relies on, was lost."""

    status = EXIT_LATER


class ArchiveTimeout(WaleError):
    """WAL that a backup needs did not reach the store in time."""

    status = EXIT_LATER


class LockHeld(WaleError):
    """Another command works on the same cluster."""

    status = EXIT_LATER


class WalRefused(WaleError):
    """A file is not the WAL segment that its name says."""


class WalConflict(WaleError):
    """The store holds other content under the name of this WAL file."""


class WalGap(WaleError):
    """WAL that a backup or a server relies on is not in the store."""


class WalDropped(WaleError):
    """WAL was given up without being stored, because that was asked for."""


class BacklogAlarm(WaleError):
    """More WAL waits to be archived than the limit allows."""

    status = EXIT_LATER


class DrillFailed(WaleError):
    """What a drill restored does not hold what was asked of it."""


class TargetRefused(WaleError):
    """The place to restore into cannot be used."""


class DiskFull(WaleError):
    """No space is left on a local file system."""

    transient = True


class LocalFileError(WaleError):
    """A local file or directory could not be read or written."""

    status = EXIT_LATER


class CodecFailed(WaleError):
    """A codec or cipher process could not do its work."""

    status = EXIT_LATER
    transient = True


class Terminated(BaseException):
    """A signal asked the process to end; raised in the main thread only, once.

    Not a :class:`WaleError`: nothing may mistake it for a failure of its own and go on.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def local_error(error: OSError, doing: str) -> WaleError:
    """Translate an ``OSError`` on a local path into the tree; ``doing`` is "reading X"."""
    reason = error.strerror or str(error)
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return DiskFull(f"no space left while {doing}", f"The system says: {reason}.", "Free some space, or choose another file system, and run it again.")
    if error.errno in (13, 1):  # EACCES, EPERM
        return LocalFileError(
            f"permission denied while {doing}", f"The system says: {reason}.", "Run as the user that owns the data directory, usually postgres."
        )
    return LocalFileError(f"failed while {doing}", f"The system says: {reason}.")
