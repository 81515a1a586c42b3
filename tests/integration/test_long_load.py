"""A primary under full load, its store away in the midst of it: nothing is lost or comes twice, order is kept, the backlog goes, recovery equals the primary.

TEST_LOAD_SECONDS sets the length of the long runs, 600 without it; the store is away for a fifth of the time. Meanwhile the server changes its timeline.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator

import psycopg
import pytest
from fault_proxy import FaultProxy
from fix_load import Resident, Shelf, drained, dump, file_shelf, loaded, marked_done, s3_shelf, whole
from fix_postgres import Server, give_to_server_user

LONG_S = float(os.environ.get("TEST_LOAD_SECONDS") or 600)
SHORT_S = 12.0


@pytest.mark.parametrize(
    ("kind", "resident", "seconds", "segment_mb"),
    [
        pytest.param("file", True, SHORT_S, 1, id="file-resident-short"),
        *(
            pytest.param(kind, resident, LONG_S, 16, id=f"{kind}-{'resident' if resident else 'alone'}-long", marks=pytest.mark.slow)
            for kind in ("file", "s3")
            for resident in (False, True)
        ),
    ],
)
def test_a_store_that_is_away_under_full_load_costs_nothing_but_a_backlog(make_server, kind, resident, seconds, segment_mb):
    server = make_server(wal_segsize_mb=segment_mb)
    store = FileStore(server) if kind == "file" else S3Store(server)
    with contextlib.ExitStack() as stack:
        stack.enter_context(store)
        server.environ |= {**store.environ, "WALE_PUSH_DEADLINE": "5"}
        server.start(archive_mode="on", archive_command="wal-e wal-push %p", wal_keep_size="500GB")
        server.pgbench("-i", "-q", "-s", "2")
        server.wal_e("backup-push", str(server.data), "--fast")
        watch = stack.enter_context(Watch(server, store.shelf))
        if resident:
            stack.enter_context(Resident(server, server.directory / "resident.log"))
        with loaded(server, rate=600 if seconds == SHORT_S else None):
            time.sleep(0.4 * seconds)
            with store.away():
                time.sleep(0.1 * seconds)
                change_timeline(server)
                time.sleep(0.1 * seconds)
            time.sleep(0.4 * seconds)
        drained(server, timeout_s=60 + seconds)
        watch.end()
        assert watch.archived == sorted(watch.archived)
        assert watch.not_stored == set()
        names = whole(server, store.shelf)
        assert "00000002.history" in names
        store.check_order()
        before = dump(server)
        copy = recovered(make_server, server)
        assert dump(copy) == before
    print(f"{len(names)} files in the archive, at most {watch.waiting} waited")
    assert watch.waiting > 5


class FileStore:
    """A directory, which is away while it has another name."""

    def __init__(self, server: Server) -> None:
        self.shelf = file_shelf(server)
        self.environ = self.shelf.environ
        self.place = server.directory / "store"

    def __enter__(self) -> FileStore:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        elsewhere = self.place.with_name("store-away")
        self.place.rename(elsewhere)
        yield
        elsewhere.rename(self.place)

    def check_order(self) -> None:
        """Of the second timeline the history was there first: the time of a file's change is that of its publication."""
        published = {path.name: path.stat().st_ctime_ns for path in self.place.glob("wal_005/00000002*")}
        history = published.pop("00000002.history.lzo")
        assert published
        assert history <= min(published.values())


class S3Store:
    """A bucket behind a proxy, which refuses connections while the bucket is away."""

    def __init__(self, server: Server) -> None:
        self.shelf = s3_shelf(server)
        self.proxy = FaultProxy(self.shelf.network.port)
        self.environ = {**self.shelf.environ, **self.shelf.network.environ_at(self.proxy.port)}

    def __enter__(self) -> S3Store:
        self.proxy.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.proxy.__exit__(*error)

    def away(self) -> contextlib.AbstractContextManager[None]:
        return self.proxy.refusing()

    def check_order(self) -> None:
        """Of the second timeline the history was there before a segment was sent, and each file was stored by one request."""
        stored = [record for record in list(self.proxy.log) if record.method == "PUT" and "/wal_005/" in record.path and record.upstream_status == 200]
        assert [path for path, count in Counter(record.path.partition("?")[0] for record in stored).items() if count > 1] == []
        (history,) = [record for record in stored if "00000002.history" in record.path]
        later = [record for record in stored if "/wal_005/000000020" in record.path]
        assert later
        assert history.end <= min(record.start for record in later)


class Watch:
    """Looks again and again: which segment the server archived last, how many wait, what is marked done and not stored."""

    def __init__(self, server: Server, shelf: Shelf) -> None:
        self.server = server
        self.shelf = shelf
        self.archived: list[str] = []
        self.waiting = 0
        self.not_stored: set[str] = set()
        self._seen: set[str] = set()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(0.3):
            done = marked_done(self.server) - self._seen
            stored = set(self.shelf.wal_names())
            self._seen |= done & stored
            if stored:  # a directory that is away shows nothing
                self.not_stored |= done - stored
            self.waiting = max(self.waiting, sum(1 for _ in (self.server.data / "pg_wal/archive_status").glob("*.ready")))
            self._ask()

    def _ask(self) -> None:
        with contextlib.suppress(psycopg.OperationalError):  # it is being restarted
            name = self.server.psql("select last_archived_wal from pg_stat_archiver")
            if len(name) == 24:
                self.archived.append(name)


def change_timeline(server: Server) -> None:
    """Restart it as if it had been restored, from the WAL it has itself."""
    server.stop()
    (server.data / "recovery.signal").touch()
    give_to_server_user(server.data / "recovery.signal")
    server.start(restore_command="false")
    server.wait_for("select not pg_is_in_recovery()")


def recovered(make_server, origin: Server) -> Server:
    target = origin.directory / "restored"
    origin.wal_e("backup-fetch", str(target), "LATEST")
    (target / "recovery.signal").touch()
    server = make_server(data=target)
    server.environ |= {name: value for name, value in origin.environ.items() if name not in server.environ}
    server.start(archive_mode="off", restore_command="wal-e wal-fetch %f %p", recovery_target_timeline="latest")
    server.wait_for("select not pg_is_in_recovery()", timeout_s=600)
    return server
