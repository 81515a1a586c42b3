"""The ``wal-*`` verbs from settings to done, for the fast path and for click alike.

Each imports what it needs when it is called: a push does not pay for a fetch, and a prefetch
hit pays for neither store nor pipeline.
"""

from __future__ import annotations

import os

from wal_e.errors import BlobNotFound, UsageError, WaleError
from wal_e.record import NamedTuple
from wal_e.settings import PREFIXES, Settings, read_envdir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from wal_e.archive.archive import Archive
    from wal_e.pipeline.process import Waits
    from wal_e.retry import Policy


NETWORK_LANES = 8

_VENDOR_VARIABLES = {
    "aws_access_key_id": "AWS_ACCESS_KEY_ID",
    "aws_instance_profile": "AWS_INSTANCE_PROFILE",
    "wabs_account_name": "WABS_ACCOUNT_NAME",
}


class Push(NamedTuple):
    """What ``wal-push`` was called with."""

    path: str
    pool_size: int
    no_rename: bool = False
    drop_after: int | None = None


def settings_of(options: Mapping[str, str]) -> Settings:
    """Apply ``--envdir``, then options that are a vendor's, to the environment of this process; read settings from there and from options.

    Raises: ConfigurationError, UsageError.
    """
    if "aws_instance_profile" in options and "aws_access_key_id" in options:
        raise UsageError("--aws-instance-profile and --aws-access-key-id exclude each other", "Each says where S3 credentials come from.", "Use one of them.")
    if options.get("envdir"):
        for name, value in read_envdir(options["envdir"]).items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    os.environ.update({variable: options[name] for name, variable in _VENDOR_VARIABLES.items() if name in options})
    return Settings(os.environ, options)


def is_in_files(settings: Settings) -> bool:
    """Whether the store is a directory. Raises: ConfigurationError."""
    from wal_e.blobstore.url import parse_store_url

    return parse_store_url(settings.prefix).scheme == "file"


def push_lanes(settings: Settings) -> int:
    """How many files are pushed at once: enough to keep the processors busy, and a network besides."""
    lanes = (os.cpu_count() or 1) + 1
    return lanes if is_in_files(settings) else max(lanes, NETWORK_LANES)


def fetch_lanes(count: int) -> int:
    """How many segments are prefetched at once: as many as keep the processors busy with their codecs."""
    return max(1, min(count, (os.cpu_count() or 1) + 1))


def wal_push(settings: Settings, wanted: Push, waits: Callable[[list[str]], Waits]) -> None:
    """Have one WAL file pushed by the resident archiver; else push it, and neighbours beside it.

    ``waits`` is told the neighbours and says how to wait. Without renaming there are none: the server would
    have each of them pushed again.

    Raises: WaleError.
    """
    from wal_e.operators.handshake import pushed_by_archiver

    try:
        if pushed_by_archiver(settings, wanted.path):
            return
        from wal_e.operators import wal_push as pushing

        others = [] if wanted.no_rename or settings.no_rename else pushing.neighbours(wanted.path, wanted.pool_size)
        archive = _opened(settings, waits(others), pushing.patience(settings, wanted.path))
        if others:
            pushing.push_with_neighbours(archive, wanted.path, others)
        else:
            pushing.push(archive, wanted.path)
    except WaleError as error:
        if wanted.drop_after is None or not error.transient or not _given_up(wanted.path, wanted.drop_after):
            raise
        from wal_e.log import Logger

        Logger(__name__).error(error)


def _given_up(path: str, keep: int) -> bool:
    """Give up the oldest of more than ``keep`` waiting files; tell whether the named one is among them. Raises: LocalFileError."""
    from wal_e.operators import backlog

    directory, name = os.path.split(path)
    return name in backlog.drop(directory or ".", keep)


def wal_fetch(settings: Settings, name: str, destination: str, prefetch: int, waits: Waits) -> None:
    """Fetch one WAL file from the store, then see that the next ones are prefetched. Raises: WaleError."""
    from wal_e.operators.wal_fetch import fetch

    try:
        fetch(_opened(settings, waits), name, destination)
    except BlobNotFound:
        if prefetch > 0:
            from wal_e.operators.prefetch_directory import note_absence

            note_absence(name, destination)
        raise
    prefetch_after(settings, name, destination, prefetch)


def promote(name: str, destination: str, prefetch: int) -> bool:
    """Take a prefetched segment, if that is asked for and there is one. Raises: LocalFileError."""
    from wal_e.postgres.wal import wal_kind

    if prefetch < 1 or wal_kind(name) != "segment":
        return False
    from wal_e.operators import wal_prefetch

    return wal_prefetch.promote(name, destination)


def prefetch_after(settings: Settings, name: str, destination: str, prefetch: int) -> None:
    """Start the background process that prefetches, where it is wanted and none runs."""
    from wal_e.postgres.wal import wal_kind

    if prefetch < 1 or wal_kind(name) != "segment":
        return
    from wal_e.operators import wal_prefetch

    others = {key: value for key, value in os.environ.items() if key not in PREFIXES.values()}
    wal_prefetch.start_prefetching(name, destination, prefetch, lambda: {**others, **settings.prefix_variable()})


def wal_prefetch(settings: Settings, pg_wal: str, name: str, count: int, waits: Waits) -> None:
    """Prefetch segments until the store has no more. Raises: WaleError."""
    from wal_e.operators import wal_prefetch as prefetching

    prefetching.prefetch(_opened(settings, waits), os.path.abspath(pg_wal), name, count)


def _opened(settings: Settings, waits: Waits, patience: Policy | None = None) -> Archive:
    from wal_e.archive.archive import Archive

    return Archive.open(settings, waits, patience=patience)
