"""``check`` of the store: that it answers, each right by itself, and what all else relies on, each tried with a probe of our own.

A probe is a small object below ``probe_005/`` with a name of its own. It is noted before it is stored, so that it is removed
also when a signal comes in between. Where credentials may not delete, it stays, and the next check that may removes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import timedelta

from wal_e.archive import layout
from wal_e.archive.identity import read_identity
from wal_e.blobstore.parts import PART_BYTES
from wal_e.blobstore.url import parse_store_url
from wal_e.errors import BlobExists, BlobNotFound, ConfigurationError, DamageError, StoreForbidden, StoreMisconfigured
from wal_e.operators.check_subject import Seen, Subject, ok, skip, warn
from wal_e.operators.measure import Measured
from wal_e.pipeline import pool
from wal_e.progress import shown_bytes, shown_seconds

CONTENT = b"wal-e check\n"
RIVALS = 4  # creates at once, of which one may succeed
STALE = timedelta(hours=1)  # a probe that is older has nobody any more
SLACK = timedelta(seconds=1)  # S3 and HTTP tell times in whole seconds
CLOCK_WARNING = timedelta(minutes=1)
CLOCK_LIMIT = timedelta(minutes=15)  # S3 and Azure refuse requests beyond it
LARGE_BYTES = 2 * PART_BYTES + 12345
CHUNK_BYTES = 1 << 20

ONE_WRITER = "Archive into one prefix from one server only, or use a service that decides conditional writes."


def prefix(subject: Subject) -> Seen:
    """One prefix is set, and it is the URL of a store. Raises: ConfigurationError."""
    address = parse_store_url(subject.settings.prefix)
    return ok(f"{address.scheme}://{address.host or 'localhost'}{address.path}")


def reach(subject: Subject) -> Seen:
    """The store answers, and knows who asks. Raises: ConfigurationError, StoreMisconfigured, StoreUnavailable."""
    began = time.monotonic()
    subject.archive = subject.open_archive()
    try:
        subject.archive.store.stat(layout.IDENTITY)
    except (BlobNotFound, StoreForbidden):
        pass  # an answer, too; each right has a check of its own
    return ok(f"answers within {(time.monotonic() - began) * 1000:.0f} ms")


def write(subject: Subject) -> Seen:
    """An object can be stored. Raises: StoreError."""
    key = _new_probe(subject)
    before = subject.now()
    try:
        subject.archive.store.put(key, [CONTENT])
    except StoreForbidden:
        subject.probes.remove(key)
        raise
    subject.wrote = (before, subject.now())
    return ok(key)


def read(subject: Subject) -> Seen:
    """What was stored comes back; where nothing can be stored, an object can be asked for. Raises: StoreError, DamageError."""
    store = subject.archive.store
    if subject.wrote is None:
        return ok("an object can be asked for" if read_identity(store) is None else f"{layout.IDENTITY} can be read")
    key = subject.probes[0]
    found = b"".join(store.get(key))
    if found != CONTENT:
        raise DamageError(f"{store.url_of(key)} came back changed", f"{len(CONTENT)} bytes were stored, and {len(found)} came back.", "Use another store.")
    return ok("the probe came back")


def listing(subject: Subject) -> Seen:
    """A listing shows what is stored; what earlier checks left is noted, to be removed. Raises: StoreError."""
    store = subject.archive.store
    found = list(store.list(layout.PROBES))
    if subject.wrote is None:
        return ok("a listing can be asked for")
    key = subject.probes[0]
    if key not in {blob.key for blob in found}:
        raise StoreMisconfigured(
            "a listing does not show what was stored",
            f"{store.url_of(key)} is not in it.",
            "Use a store whose listings are complete at once: deletion and wal-verify rely on them.",
        )
    stale = [blob.key for blob in found if blob.modified < subject.now() - STALE]
    subject.probes += stale
    return ok("shows the probe" + (f", and {len(stale)} that earlier checks left" if stale else ""))


def conditional(subject: Subject) -> Seen:
    """What is created exists once, however many try. Raises: StoreError."""
    store, key = subject.archive.store, _new_probe(subject)
    store.create(key, [CONTENT])
    try:
        store.create(key, [CONTENT])
    except BlobExists:
        pass
    else:
        raise StoreMisconfigured(
            "a second create overwrote the first", f"Both creates of {store.url_of(key)} succeeded: nothing keeps two servers apart here.", ONE_WRITER
        )
    contested = _new_probe(subject)
    outcomes = list(pool.run(lambda number: store.create(contested, [b"%d\n" % number]), range(RIVALS), RIVALS))
    for outcome in outcomes:
        if outcome.error is not None and not isinstance(outcome.error, BlobExists):
            raise outcome.error
    winners = sum(outcome.error is None for outcome in outcomes)
    if winners > 1:
        return warn(f"{winners} of {RIVALS} creates of one key at once succeeded: two servers could overwrite each other", ONE_WRITER)
    return ok(f"a second create was refused, and of {RIVALS} at once all but one")


def clock(subject: Subject) -> Seen:
    """The store's clock and ours agree. Raises: ConfigurationError, StoreError."""
    stored = subject.archive.store.stat(subject.probes[0]).modified
    assert subject.wrote is not None
    before, after = subject.wrote
    ahead = max(stored - after, timedelta(0)) - max(before - SLACK - stored, timedelta(0))
    if abs(ahead) <= SLACK:
        return ok("the store's and this machine's agree")
    text = f"the store's clock is {shown_seconds(abs(ahead).total_seconds())} {'ahead of' if ahead > timedelta(0) else 'behind'} this machine's"
    hint = "Have both clocks set by NTP (see timedatectl): requests are signed with the time, and retention and --target-time go by it."
    if abs(ahead) > CLOCK_LIMIT:
        raise ConfigurationError(text, f"A probe that was stored at {after:%Y-%m-%d %H:%M:%S} UTC has the time {stored:%Y-%m-%d %H:%M:%S}.", hint)
    return warn(text, hint) if abs(ahead) > CLOCK_WARNING else ok(text)


def parts(subject: Subject) -> Seen:
    """An object larger than one part goes up in parts and comes back. Raises: StoreError, DamageError."""
    if not subject.options.thorough:
        return skip("--thorough stores and reads an object in parts")
    store, key = subject.archive.store, _new_probe(subject)
    sent = Measured(_noise(LARGE_BYTES))
    began = time.monotonic()
    store.put(key, sent)
    got = Measured(store.get(key))
    for _ in got:
        pass
    if (got.size, got.sha256) != (sent.size, sent.sha256):
        raise DamageError(f"{store.url_of(key)} came back changed", f"{sent.size} bytes were stored in parts, {got.size} came back.", "Use another store.")
    return ok(f"{shown_bytes(sent.size)} went up and came back in {time.monotonic() - began:.1f} s")


def delete(subject: Subject) -> Seen:
    """The probes can be deleted again. Raises: StoreError."""
    store, keys = subject.archive.store, tuple(subject.probes)
    try:
        store.delete(keys)
    except StoreForbidden as refused:
        subject.probes.clear()
        return warn(
            f"{refused.message}; {len(keys)} small objects stay below {store.url_of(layout.PROBES)}",
            "Right if wal-e delete runs elsewhere, with other credentials. backup-push cannot remove what a failed push left then. "
            f"Otherwise: {refused.hint or 'allow these credentials to delete below the prefix.'}",
        )
    subject.probes.clear()
    return ok("the probes are gone")


def identity(subject: Subject) -> Seen:
    """The prefix is this cluster's, or nobody's. Raises: WrongCluster, DamageError, StoreError."""
    found = read_identity(subject.archive.store)
    if found is None:
        return ok("no cluster's yet; the first push makes it its own")
    if subject.cluster is not None:
        found.require(subject.cluster.control.system_identifier, subject.archive.store)
    return ok(f"of the system identifier {', '.join(map(str, found.system_identifiers))}")


def _new_probe(subject: Subject) -> str:
    key = layout.probe_key(os.urandom(8).hex())
    subject.probes.append(key)
    return key


def _noise(size: int) -> Iterator[bytes]:
    for offset in range(0, size, CHUNK_BYTES):
        yield os.urandom(min(CHUNK_BYTES, size - offset))
