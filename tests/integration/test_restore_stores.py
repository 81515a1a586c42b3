"""The verbs of restoring on every network store: through a network that breaks, to every kind of point, encrypted; and when the store is away for good."""

from __future__ import annotations

import functools
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import fix_s3
import pytest
from fault_proxy import FaultProxy
from fault_rules import Answer, Cut, CutEvery, Delay, Rule, Stall, slow_down
from fix_archive import Watched, records, settled, warnings
from fix_history import RESTORE_POINT, Change, archived, change, contents, promoted, shown
from fix_network import NETWORKS, Network
from fix_postgres import Server, bindir, wait_until

SHORT = {"WALE_FETCH_DEADLINE": "2", "WALE_PUSH_DEADLINE": "2", "WALE_CONNECT_TIMEOUT": "1", "WALE_READ_TIMEOUT": "1"}
ON_EVERY_STORE = pytest.mark.parametrize("store", [pytest.param(name, marks=() if name == "s3" else pytest.mark.slow) for name in NETWORKS])
KINDS = ["end", "time", "xid", "lsn", "name", "immediate"]


class Stock(NamedTuple):
    """A prefix with one backup: before it came change 1, behind it 2, a restore point, 3 and 4. ``server`` is the one that was lost, which does not run."""

    server: Server
    network: Network
    environ: dict[str, str]
    changes: dict[int, Change]
    tablespace: str
    hba: Path

    def environ_at(self, port: int) -> dict[str, str]:
        return {**self.environ, **self.network.environ_at(port)}

    def moved(self, directory: Path) -> tuple[str, ...]:
        """The words that bring the tablespace below another directory."""
        return "--tablespace", f"{self.tablespace}={directory}/space"


@pytest.fixture(scope="module")
def stocks(make_shared_server):
    """Make the stock of a kind of store, when it is first asked for; as "gpg", what is stored there is encrypted."""
    encrypting: list[Server] = []

    @functools.cache
    def stock(store: str, cipher: str = "plain") -> Stock:
        server = make_shared_server(checksums=True)
        environ = {"WALE_LOG_DESTINATION": "stderr"}
        if cipher == "gpg":
            encrypting.append(server)
            environ |= {"GNUPGHOME": str(server.make_directory("gnupg")), "WALE_GPG_KEY_ID": "archive@example.org"}
            server.run(["gpg", "--batch", "--quiet", "--passphrase", "", "--quick-gen-key", "archive@example.org", "rsa2048", "encr", "1d"], env=environ)
        return stocked(server, NETWORKS[store](), environ)

    yield stock
    for server in encrypting:
        server.run(["gpgconf", "--kill", "all"], env={"GNUPGHOME": str(server.directory / "gnupg")})


def stocked(server: Server, network: Network, environ: dict[str, str]) -> Stock:
    server.environ |= {**network.environ, **environ}
    hba = server.make_directory("etc") / "pg_hba.conf"
    (server.data / "pg_hba.conf").rename(hba)
    server.start(track_commit_timestamp="on", autovacuum="off", hba_file=str(hba))
    server.psql(f"create tablespace aside location '{server.make_directory('space')}'")
    server.psql("create database other")
    server.psql("create table elsewhere as select n, repeat('x', n % 100) as x from generate_series(1, 3000) as n", "other")
    server.psql("create table t (n int) tablespace aside")
    server.psql("create table noise as select n, sha512(n::text::bytea) || sha512((-n)::text::bytea) as noise from generate_series(1, 20000) as n")
    changes = {1: change(server, 1)}
    server.stop()
    server.start(archive_mode="on", archive_command="wal-e wal-push %p")  # the WAL until now need not be waited for
    pushed = server.wal_e("backup-push", str(server.data), "--fast", "--include-config", "--verify-page-checksums")
    assert warnings(pushed) == []
    changes[2] = change(server, 2)
    server.psql(f"select pg_create_restore_point('{RESTORE_POINT}')")
    changes |= {n: change(server, n) for n in (3, 4)}
    archived(server)
    settled(server)
    tablespace = server.psql("select oid from pg_tablespace where spcname = 'aside'")
    server.stop()
    return Stock(server, network, environ, changes, tablespace, hba)


class Place:
    """Where somebody restores from a stock, through a proxy or not, and runs of wal-e there."""

    def __init__(self, stock: Stock, server: Server, port: int | None = None) -> None:
        self.stock = stock
        self.server = server
        self.target = server.data
        self.config = server.directory / "config"
        self.scratch = server.make_directory("scratch")
        server.environ |= stock.environ_at(port or stock.network.port)
        self._run = Watched(server)

    def __call__(self, *words: str, env: dict[str, str] | None = None):
        return self._run(*words, env=env)

    def done(self, *words: str) -> str:
        """Run a verb that must succeed; return what it printed."""
        result = self(*words)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def words(self, verb: str) -> list[str]:
        """The words of a verb, here."""
        restore = ["restore", str(self.target), *self.stock.moved(self.server.directory)]
        return {
            "restore": restore,
            "restore --config-to": [*restore, "--config-to", str(self.config)],
            "restore --delta": [*restore, "--delta"],
            "restore --dry-run": [*restore, "--dry-run"],
            "drill": ["drill", "--bindir", str(bindir()), "--directory", str(self.scratch), "--sql", str(self._assertions())],
            "backup-verify": ["backup-verify", "LATEST", "--json"],
            "backup-verify --fast": ["backup-verify", "--all", "--fast", "--json"],
            "window": ["window", "--json"],
            "check": ["check"],
        }[verb]

    def _assertions(self) -> Path:
        """What must be true of the newest state, as SQL."""
        path = self.server.directory / "assertions.sql"
        path.write_text("select array_agg(n order by n) = '{1,2,3,4}' from t;\nselect count(*) = 20000 from noise;\n")
        path.chmod(0o644)
        return path

    def spoil(self) -> None:
        """Damage the largest file of the target, and remove another one."""
        files = sorted((path for path in (self.target / "base").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        with files[-1].open("r+b") as stream:
            stream.seek(20000)
            stream.write(b"no page of ours")
        files[-2].unlink()

    def is_whole(self) -> bool:
        argv = [bindir() / "pg_verifybackup", "-n", "-i", "postgresql.auto.conf", "-i", "recovery.signal", self.target]
        return "successfully verified" in self.server.run(argv, check=False).stdout

    def knows(self) -> dict[str, object]:
        """What is remembered of verifications and drills of the only backup."""
        [backup] = json.loads(self.done("backup-list", "--json", "--detail"))
        return {name: backup[name] for name in ("last_verify", "last_drill")}


@ON_EVERY_STORE
def test_every_verb_of_restoring_comes_through_a_network_that_breaks(stocks, store, make_place):
    stock = stocks(store)
    with FaultProxy(stock.network.port) as proxy:
        proxy.add(Rule(CutEvery(2_000_000, over_all=True)), Rule(slow_down(), every=15))
        place = Place(stock, make_place(), proxy.port)
        [window] = json.loads(place.done(*place.words("window")))["windows"]
        assert window["last_commit"]["time"] == stock.changes[4].time.isoformat(timespec="microseconds")
        restored_and_mended(place)
        [verified] = json.loads(place.done(*place.words("backup-verify")))
        assert verified["ok"], verified
        assert verified["pages"] > 500
        assert sum(bool(record.faults) for record in proxy.log) > 3


def restored_and_mended(place: Place) -> None:
    """Restore with the configuration, then a second time over what is damaged."""
    place.done(*place.words("restore --config-to"))
    assert place.is_whole()
    assert (place.config / place.stock.hba.relative_to("/")).read_bytes() == place.stock.hba.read_bytes()
    place.spoil()
    assert re.search(r"^ +\d files \(.*are fetched, out of", place.done(*place.words("restore --delta")), re.M)
    assert place.is_whole()


@pytest.mark.slow
@pytest.mark.parametrize("cipher", ["plain", "gpg"])
@pytest.mark.parametrize("store", NETWORKS)
def test_every_verb_of_restoring_works_and_remembers(stocks, store, cipher, make_place):
    place = Place(stocks(store, cipher), make_place())
    assert "0 failed" in place.done(*place.words("check"))
    for verb in ("backup-verify", "backup-verify --fast"):
        [verified] = json.loads(place.done(*place.words(verb)))
        assert verified["ok"], verified
    assert "is proven to restore" in place.done(*place.words("drill"))
    assert list(place.scratch.iterdir()) == []
    remembered = place.knows()
    assert remembered["last_verify"]["full"]["ok"] and remembered["last_verify"]["fast"]["ok"]
    assert remembered["last_drill"]["outcome"] == "proven"
    restored_and_mended(place)


@pytest.mark.slow
@pytest.mark.parametrize("store", NETWORKS)
def test_looking_asks_a_store_few_questions(stocks, store, make_place):
    """More than one for each thing that is looked at would be a wait of minutes on a store far away."""
    stock = stocks(store)
    with FaultProxy(stock.network.port) as proxy:
        proxy.add(Rule(Delay(0.03)))
        place = Place(stock, make_place(), proxy.port)
        for verb in ("window", "restore --dry-run", "backup-verify --fast"):
            proxy.clear()
            place.done(*place.words(verb))
            assert len(proxy.log) <= 25, [(record.method, record.path) for record in proxy.log]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("store", NETWORKS)
def test_every_kind_of_point_is_reached(stocks, store, kind, make_place, make_server):
    stock = stocks(store)
    n, *words = {
        "end": [4],
        "time": [3, "--target-time", shown(stock.changes[3].time)],
        "xid": [2, "--target-xid", stock.changes[2].xid],
        "lsn": [3, "--target-lsn", stock.changes[3].lsn],
        "name": [2, "--target-name", RESTORE_POINT],
        "immediate": [1, "--target-immediate"],
    }[kind]
    place = Place(stock, make_place())
    place.done(*place.words("restore"), *words, *(["--target-action", "promote"] if words else []))
    server = make_server(data=place.target)
    server.environ |= place.server.environ
    server.start(archive_mode="off")
    promoted(server)
    assert contents(server) == stock.changes[n].contents


@pytest.mark.slow
@pytest.mark.parametrize("store", NETWORKS)
def test_one_database_is_restored_alone(stocks, store, make_place, make_server):
    stock = stocks(store)
    place = Place(stock, make_place())
    place.done(*place.words("restore"), "--include-database", "other")
    server = make_server(data=place.target)
    server.environ |= place.server.environ
    server.start(archive_mode="off")
    promoted(server)
    assert contents(server)["other.elsewhere"] == stock.changes[4].contents["other.elsewhere"]


def forbidden(store: str) -> Answer:
    """The answer of a service to somebody whose rights were taken away."""
    reason = {"code": 403, "message": "no access", "errors": [{"domain": "global", "reason": "forbidden", "message": "no access"}]}
    content, kind = {
        "s3": (fix_s3.document("AccessDenied", "Access Denied"), "application/xml"),
        "gcs": (json.dumps({"error": reason}).encode(), "application/json"),
        "azure": (b'<?xml version="1.0"?><Error><Code>AuthorizationPermissionMismatch</Code><Message>No.</Message></Error>', "application/xml"),
        "swift": (b"Forbidden", "text/plain"),
    }[store]
    return Answer(403, content, {"Content-Type": kind, **({"x-ms-error-code": "AuthorizationPermissionMismatch"} if store == "azure" else {})})


PARTITION = "tar_partitions(/|%2F)part_0000000[0-9]"
TROUBLE = {
    "silent": ("StoreUnavailable", lambda store: Rule(Stall())),
    "silent in the middle": ("StoreUnavailable", lambda store: Rule(Stall(after=0), path=PARTITION)),
    "broken again and again": ("StoreUnavailable", lambda store: Rule(Cut(0), path=PARTITION)),
    "overloaded": ("StoreUnavailable", lambda store: Rule(slow_down(), path=PARTITION)),
    "forbidden in the middle": ("StoreForbidden", lambda store: Rule(forbidden(store), path=PARTITION)),
}


@pytest.mark.slow
@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("store", NETWORKS)
def test_a_store_that_is_away_is_told_in_time_and_nothing_is_held_against_the_backup(stocks, store, trouble, make_place):
    stock = stocks(store)
    error, rule = TROUBLE[trouble]
    places = {verb: Place(stock, make_place()) for verb in ("restore", "restore --delta", "backup-verify", "drill", "window", "check")}
    if trouble != "silent":
        del places["window"], places["check"]  # they do not read partitions
    places["restore --delta"].done(*places["restore --delta"].words("restore"))
    places["restore --delta"].spoil()
    remembered, held = places["drill"].knows(), sorted(stock.network.objects())
    with FaultProxy(stock.network.port) as proxy, ThreadPoolExecutor(2) as threads:
        proxy.add(rule(store))
        environ = {**SHORT, **stock.environ_at(proxy.port)}
        results = dict(zip(places, threads.map(lambda verb: places[verb](*places[verb].words(verb), env=environ), places), strict=True))
    for verb, result in results.items():
        assert result.returncode == 1, (verb, result.stdout, result.stderr)
        assert [record.error for record in records(result.stderr) if record.level == "ERROR"] == [error], (verb, result.stderr)
    assert not places["restore"].target.exists()
    assert not (places["restore"].server.directory / "space").exists()
    assert list(places["drill"].scratch.iterdir()) == []
    assert sorted(stock.network.objects()) == held
    assert places["drill"].knows() == remembered
    place = places["restore --delta"]
    assert trouble == "silent" or not (place.target / "global/pg_control").exists()  # what failed halfway cannot be started
    place.done(*place.words("restore --delta"))
    assert place.is_whole()


@ON_EVERY_STORE
def test_a_store_that_comes_back_is_waited_for(stocks, store, make_place):
    stock = stocks(store)
    stall = Stall(after=20_000)
    with FaultProxy(stock.network.port) as proxy:
        proxy.add(Rule(stall, path=PARTITION))
        place = Place(stock, make_place(), proxy.port)
        with Watched(place.server).started(*place.words("restore")) as restore:
            wait_until(lambda: stall.reached.is_set() or restore.poll() is not None, "a partition is on its way")
            with proxy.refusing():
                stall.released.set()
                said = next((line for line in restore.stderr if "trying again" in line), "")
            output, stderr = restore.communicate(timeout=120)
    assert stall.reached.is_set()
    assert said
    assert restore.returncode == 0, stderr
    assert "restored" in output
    assert place.is_whole()
