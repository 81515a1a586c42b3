"""Network stores that are down, forbidden, silent, slow or empty, and a real server that recovers or stands by: it never goes on without its WAL.

The server's restore_command takes its variables from a directory, as an administrator's does, so that what was wrong can be put right while it runs.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import fix_s3
import pytest
from fault_proxy import FaultProxy
from fault_rules import Rule, Stall
from fix_archive import fill_archive, settled
from fix_network import NETWORKS, Network
from fix_postgres import Server, give_to_server_user, wait_until
from servers import versity

PATIENCE = {"WALE_FETCH_DEADLINE": "1", "WALE_CONNECT_TIMEOUT": "1", "WALE_READ_TIMEOUT": "1", "WALE_LOG_DESTINATION": "stderr"}
ROWS = 4000


class Origin(NamedTuple):
    """A stopped server whose WAL is in a network store, and its fetched base backup.

    That lacks the last rows, and has the segment without which it could not be started: it would be promoted if no WAL followed.
    """

    server: Server
    network: Network
    backup: Path


class Recovering(NamedTuple):
    """A server on a copy of the backup, not started; its way to the store; and the directory of its variables."""

    server: Server
    network: Network
    proxy: FaultProxy
    envdir: Path

    def set(self, **variables: str) -> None:
        for name, value in variables.items():
            (self.envdir / name).write_text(value)
        give_to_server_user(self.envdir)

    @property
    def environ(self) -> dict[str, str]:
        return self.network.environ_at(self.proxy.port)


@pytest.fixture(scope="module")
def origins(make_shared_server) -> Callable[[str], Origin]:
    @functools.cache
    def origin(kind: str) -> Origin:
        server, network = make_shared_server(), NETWORKS[kind]()
        server.environ |= {**network.environ, "WALE_LOG_DESTINATION": "stderr"}
        server.start(archive_mode="on", archive_command="wal-e wal-push %p")
        fill_archive(server)
        backup = server.directory / "backup"
        server.wal_e("backup-fetch", str(backup), "LATEST")
        segment = re.search(r"file (\w{24})", (backup / "backup_label").read_text())[1]
        server.wal_e("wal-fetch", segment, str(backup / "pg_wal" / segment), "-p", "0")
        return Origin(server, network, backup)

    return origin


@pytest.fixture(params=["s3"])
def store(request) -> str:
    return request.param


@pytest.fixture
def recovering(origins, make_place, make_server, store) -> Iterator[Recovering]:
    origin = origins(store)
    place = make_place()
    place.run(["cp", "-a", origin.backup, place.data])
    server = make_server(data=place.data)
    with FaultProxy(origin.network.port) as proxy:
        found = Recovering(server, origin.network, proxy, place.make_directory("envdir"))
        found.set(**PATIENCE, **found.environ)
        command = f"wal-e --envdir {found.envdir} wal-fetch %f %p"
        server.configure(archive_mode="off", hot_standby="on", restore_command=command, wal_retrieve_retry_interval="200ms")
        yield found
        server.end()


# Each trouble lasts as long as its block; after it the store is as it should be.


def down(recovering: Recovering) -> AbstractContextManager[None]:
    return recovering.proxy.refusing()


@contextlib.contextmanager
def held(recovering: Recovering, stall: Stall, path: str) -> Iterator[None]:
    recovering.proxy.add(Rule(stall, method="GET", path=path))
    try:
        yield
    finally:
        recovering.proxy.clear()
        stall.released.set()


def silent(recovering: Recovering) -> AbstractContextManager[None]:
    return held(recovering, Stall(), "")


def slow(recovering: Recovering) -> AbstractContextManager[None]:
    """Each segment comes as far as its thousandth byte."""
    return held(recovering, Stall(after=1000), "wal_005/[0-9A-F]{24}")


@contextlib.contextmanager
def forbidden(recovering: Recovering) -> Iterator[None]:
    """The user has no right yet, neither to the objects nor to the list of them."""
    name, secret = f"reader-{next(_readers)}", "a-secret-of-a-reader"
    bucket = re.match(r"s3://([^/]+)", recovering.environ["WALE_S3_PREFIX"])[1]
    fix_s3.server(versity).add_user(name, secret)
    fix_s3.admin(versity).put_bucket_policy(Bucket=bucket, Policy=policy(name, bucket, "s3:GetBucketAcl"))
    recovering.set(AWS_ACCESS_KEY_ID=name, AWS_SECRET_ACCESS_KEY=secret)
    yield
    fix_s3.admin(versity).put_bucket_policy(Bucket=bucket, Policy=policy(name, bucket, "s3:ListBucket", "s3:GetObject"))


_readers = itertools.count(1)


def policy(user: str, bucket: str, *actions: str) -> str:
    allowed = {"Effect": "Allow", "Principal": {"AWS": [user]}}
    places = [{"Action": [name], "Resource": f"arn:aws:s3:::{bucket}{'/*' if 'Object' in name else ''}"} for name in actions]
    return json.dumps({"Version": "2012-10-17", "Statement": [{**allowed, **place} for place in places]})


@contextlib.contextmanager
def empty(recovering: Recovering) -> Iterator[None]:
    """The prefix is another one, with nothing in it."""
    with changed_prefix(recovering, recovering.environ["WALE_S3_PREFIX"] + "-typed-wrong"):
        yield


@contextlib.contextmanager
def changed_prefix(recovering: Recovering, prefix: str) -> Iterator[None]:
    recovering.set(WALE_S3_PREFIX=prefix)
    yield
    recovering.set(WALE_S3_PREFIX=recovering.environ["WALE_S3_PREFIX"])


WORDS = {down: "refused", silent: "timed out", slow: "timed out", forbidden: "not allowed to", empty: "holds no WAL at all"}


def cases(quick: set, *more: tuple[str, Callable]) -> list:
    """Every trouble with S3 and some with others; those that are not quick run with --slow."""
    pairs = [*(("s3", trouble) for trouble in WORDS), *more]
    return [pytest.param(*pair, marks=() if pair in quick else pytest.mark.slow) for pair in pairs]


def rows(server: Server) -> bool:
    return server.psql("select count(*) from t") == str(ROWS)


def stopped(recovering: Recovering, words: str) -> None:
    server = recovering.server
    wait_until(lambda: not server.is_running(), f"the server stops\n{server.log_text()}")
    assert words in server.log_text(), server.log_text()
    assert "selected new timeline" not in server.log_text()


@pytest.mark.parametrize(
    ("store", "trouble"), cases({("s3", down), ("s3", forbidden), ("s3", empty), ("gcs", down)}, ("gcs", down), ("azure", silent)), indirect=["store"]
)
def test_a_recovering_server_stops_and_goes_on_when_the_store_is_back(recovering, trouble):
    server = recovering.server
    (server.data / "recovery.signal").touch()
    with trouble(recovering):
        server.start(check=False)
        stopped(recovering, WORDS[trouble])
    server.start()
    server.wait_for("select not pg_is_in_recovery()")
    assert rows(server)


@pytest.mark.parametrize(("store", "trouble"), cases({("s3", down), ("s3", slow), ("azure", down)}, ("gcs", silent), ("azure", down)), indirect=["store"])
def test_a_standby_stays_up_and_catches_up_when_the_store_is_back(recovering, trouble):
    """But for missing rights, which nobody gives it while it waits: then it stops."""
    server = recovering.server
    (server.data / "standby.signal").touch()
    with trouble(recovering):
        server.start(check=False, wait=trouble is forbidden)
        if trouble is forbidden:
            stopped(recovering, WORDS[trouble])
        else:
            asks_again(server, WORDS[trouble])
    if trouble is forbidden:
        server.start()
    wait_until(lambda: "ready to accept read-only connections" in server.log_text(), f"the standby goes on\n{server.log_text()}")
    server.wait_for(f"select count(*) = {ROWS} from t")
    assert server.psql("select pg_is_in_recovery()") == "t"
    assert trouble is forbidden or "shutting down" not in server.log_text()


def test_a_store_that_goes_down_behind_a_running_standby_does_not_end_it_and_stops_it_when_it_was_to_recover(recovering):
    server = recovering.server
    caught_up(server)
    with recovering.proxy.refusing():
        asks_again(server, "refused")
        recovers_instead(server)
        stopped(recovering, "refused")
    server.start()
    server.wait_for("select not pg_is_in_recovery()")
    assert rows(server)


def test_a_recovering_server_stops_at_the_prefix_of_another_cluster(recovering, make_server):
    """It has come so far that it would be promoted, were it told that the next segment is not there."""
    other = make_server(wal_segsize_mb=16)  # of another template, so with another system identifier
    prefix = recovering.environ["WALE_S3_PREFIX"] + "-of-another"
    other.environ |= {**recovering.network.environ, "WALE_S3_PREFIX": prefix, "WALE_LOG_DESTINATION": "stderr"}
    other.start(archive_mode="on", archive_command="wal-e wal-push %p")
    other.psql("select pg_switch_wal()")
    settled(other)
    other.stop()
    server = recovering.server
    caught_up(server)
    with changed_prefix(recovering, prefix):
        recovers_instead(server)
        stopped(recovering, "another cluster")
    server.start()
    server.wait_for("select not pg_is_in_recovery()")
    assert rows(server)


def caught_up(server: Server) -> None:
    (server.data / "standby.signal").touch()
    server.start()
    server.wait_for(f"select count(*) = {ROWS} from t")


def recovers_instead(server: Server) -> None:
    server.stop()
    (server.data / "standby.signal").rename(server.data / "recovery.signal")
    server.start(check=False)


def asks_again(server: Server, words: str) -> None:
    wait_until(lambda: server.log_text().count("ERROR") >= 3, f"the standby asks again\n{server.log_text()}")
    assert words in server.log_text(), server.log_text()
    assert server.is_running()
