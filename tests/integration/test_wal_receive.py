"""wal-receive with real servers: nothing is lost, nothing is skipped, whoever is killed or away."""

import contextlib
import os
import re
import select
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from fix_archive import Watched, records, refusal, stored_wal
from fix_network import NETWORKS
from fix_postgres import bindir, give_to_server_user, wait_until

from wal_e.operators.receive_report import Reporter
from wal_e.operators.spool import Spool

INTERVAL = ("--partial-interval", "0.2")


class Site:
    """A server, a store, and a directory to receive into."""

    def __init__(self, server):
        self.server = server
        self.store = server.make_directory("store")
        self.spool = server.directory / "spool"
        self.receiver = Watched(server, self.store)
        server.environ |= {"WALE_FILE_PREFIX": f"file://localhost{self.store}", "WALE_LOG_DESTINATION": "stderr"}

    @contextlib.contextmanager
    def receiving(self, *args, source=None, directory=None, env=None, ends=True):
        """Run wal-receive; it is ended by SIGTERM after the block, and what it logged is added to ``logged``."""
        where, self.said = (source or self.server).env, ""
        with self.receiver.started("wal-receive", str(directory or self.spool), *INTERVAL, *args, env={**where, **(env or {})}) as process:
            yield process
            if ends:
                self.logged = records(self.said + ended(process, -signal.SIGTERM))

    def tells(self, process, words):
        """Wait until a process has logged these words."""
        if words not in self.said:
            self.said += heard(process, words)

    def started(self):
        """Wait until WAL is received."""
        self.server.wait_for("select count(*) = 1 from pg_replication_slots where active and restart_lsn is not null")

    def load(self, rows=20_000):
        """Write more than one segment, and finish it."""
        self.server.psql(f"create table if not exists t (n int); insert into t select generate_series(1, {rows})")
        return switched(self.server)

    def is_stored(self, name):
        wait_until(lambda: list(self.store.glob(f"wal_005/{name}.lzo")), f"{name} is stored")

    def streaming(self):
        return sorted(path.name.removesuffix(".streaming.lzo") for path in self.store.glob("wal_005/*.streaming.lzo"))

    def decoded(self, key, to):
        """Decode an object by hand."""
        path = self.server.make_directory(f"decoded-{time.monotonic_ns()}") / to
        with (self.store / "wal_005" / key).open("rb") as coded, path.open("wb") as raw:
            self.server.run(["lzop", "-dc"], stdin=coded, stdout=raw, stderr=None, capture_output=False, text=False)
        give_to_server_user(path.parent)
        return path

    def has_no_gap(self, first, last):
        """All segments between two are stored, and are those of the server, as far as it has them."""
        names = [name for name in stored_wal(self.store) if first <= name <= last]
        assert names == between(first, last)
        for name in names:
            original = self.server.data / "pg_wal" / name
            if original.exists():
                assert self.decoded(f"{name}.lzo", name).read_bytes() == original.read_bytes(), name


def heard(process, words):
    """What a process writes to its stderr until these words are in it; ``ended`` returns what comes after that."""
    said = b""
    while words.encode() not in said:
        assert select.select([process.stderr], [], [], 30)[0], (words, said)
        chunk = os.read(process.stderr.fileno(), 65536)
        assert chunk, (words, said)
        said += chunk
    return said.decode()


def ended(process, status):
    """Ask a process to end, and return its stderr."""
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status, stderr
    return stderr


def switched(server):
    """Finish the current segment and return its name."""
    return server.psql("select pg_walfile_name(pg_switch_wal())")


def between(first, last):
    """Names of all segments of 1 MiB from one to another on one timeline below 4 GiB."""
    assert first[:16] == last[:16]
    return [f"{first[:16]}{number:08X}" for number in range(int(first[16:], 16), int(last[16:], 16) + 1)]


def messages(logged, level):
    return [record.message for record in logged if record.level == level]


@pytest.fixture
def site(make_server):
    """A running server with segments of 1 MiB that does not archive by itself."""
    server = make_server(wal_segsize_mb=1)
    server.start(archive_mode="off", wal_keep_size="0")
    return Site(server)


def restored(site, make_server, **settings):
    """A server on the newest base backup that recovers from the store."""
    target = site.server.directory / f"restored-{time.monotonic_ns()}"
    site.server.wal_e("backup-fetch", str(target), "LATEST")
    server = make_server(data=target)
    server.environ |= {name: value for name, value in site.server.environ.items() if name.startswith("WALE_")}
    (target / "recovery.signal").touch()
    server.start(restore_command="wal-e wal-fetch %f %p -p 0", **{"archive_mode": "off", **settings})
    server.wait_for("select not pg_is_in_recovery()")
    return server


def test_a_server_comes_back_from_what_was_received(make_server):
    site = Site(make_server(wal_segsize_mb=1))
    site.server.start(archive_mode="on", archive_command="/bin/true")
    site.server.pgbench("-i", "-q", "-s", "1")
    with site.receiving():
        load = threading.Thread(target=lambda: site.server.pgbench("-n", "-c", "2", "-T", "2"))
        load.start()
        site.server.wal_e("backup-push", str(site.server.data), "--fast")
        load.join()
        before = site.server.psql("select sum(abalance), count(*) from pgbench_accounts, (select count(*) from pgbench_history) h")
        site.is_stored(switched(site.server))
    names = stored_wal(site.store)
    site.has_no_gap(names[0], names[-1])
    target = restored(site, make_server)
    assert target.psql("select sum(abalance), count(*) from pgbench_accounts, (select count(*) from pgbench_history) h") == before


def test_the_unfinished_segment_is_stored_replaced_and_deleted(site):
    site.server.psql("create table t (n int)")
    with site.receiving():
        wait_until(lambda: len(site.streaming()) == 1, "the unfinished segment is stored")
        [segment] = site.streaming()
        path = site.store / "wal_005" / f"{segment}.streaming.lzo"
        first = path.read_bytes()
        site.server.psql("insert into t values (1)")
        wait_until(lambda: path.read_bytes() != first, "it is replaced")
        site.server.psql("insert into t select generate_series(1, 1000)")
        site.is_stored(switched(site.server))
        wait_until(lambda: not path.exists(), "it is deleted")
    assert (site.spool / segment).exists() or segment in stored_wal(site.store)


def test_a_lost_host_loses_nothing_that_was_committed_before_the_last_interval(site):
    site.server.psql("create table t (n int)")
    with site.receiving(ends=False) as process:
        site.started()
        site.server.psql("insert into t values (4711)")
        end = site.server.psql("select pg_current_wal_flush_lsn()")
        commit = site.server.psql("select pg_walfile_name(pg_current_wal_flush_lsn())")
        wait_until(lambda: site.streaming() == [commit], "the segment is being stored")

        def last_transaction():
            shown = site.server.run([bindir() / "pg_waldump", site.decoded(f"{commit}.streaming.lzo", commit)], check=False).stdout
            return re.findall(r"lsn: (\S+),.* desc: COMMIT", shown)

        wait_until(
            lambda: last_transaction() and position(last_transaction()[-1]) < position(end) <= position(last_transaction()[-1]) + 200, "the commit is there"
        )
        process.kill()
    shutil.rmtree(site.spool)


def position(lsn):
    high, low = lsn.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def test_sigterm_stores_the_last_bytes_and_leaves_no_process(site):
    site.server.psql("create table t (n int)")
    with site.receiving("--partial-interval", "3600"):
        site.started()
        segment = site.load()
        site.is_stored(segment)
        site.server.psql("insert into t values (1)")
        last = site.server.psql("select pg_walfile_name(pg_current_wal_flush_lsn())")
        wait_until(lambda: (site.spool / f"{last}.partial").exists(), "it is received")
        assert site.streaming() == []
    assert site.streaming() == [last]
    assert [name.name for name in site.spool.glob("0*")] and messages(site.logged, "WARNING") == []


def test_a_receiver_that_was_killed_goes_on_without_a_gap(site):
    with site.receiving() as process:
        site.started()
        first = site.load()
        site.is_stored(first)
        last = first
        for _ in range(3):
            before = receivers(process)
            os.kill(before[0], signal.SIGKILL)
            last = site.load()
            wait_until(lambda before=before: receivers(process) not in ([], before), "another receiver runs")
        site.is_stored(last)
        site.server.psql("insert into t values (1)")
        wait_until(lambda: list(site.spool.glob("0*.partial")), "the next segment is begun")
    [unfinished] = site.spool.glob("0*.partial")
    os.truncate(unfinished, 12345)  # as if killed while it filled a new segment with zeros
    with site.receiving():
        last = site.load()
        site.is_stored(last)
    site.has_no_gap(first, last)


def receivers(process):
    """Process ids of pg_receivewal below a wal-receive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
            if name == "pg_receivewal" and int(rest.split()[1]) == process.pid:
                found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_wal_receive_killed_at_any_moment_goes_on_without_a_gap(site):
    first = last = None
    for pause in (0.05, 0.4, 0.7, 1.1, 1.5):
        with site.receiving(ends=False) as process:
            time.sleep(pause)
            last = site.load()
            first = first or last
            time.sleep(pause / 4)
            process.kill()
            process.communicate()
    with site.receiving():
        site.started()
        last = site.load()
        site.is_stored(last)
    names = stored_wal(site.store)
    site.has_no_gap(names[0], last)
    assert [record for record in site.logged if record.level != "INFO"] == []


def test_segments_wait_while_the_store_is_away_and_the_log_says_so_once(site):
    with site.receiving(env={"WALE_BACKLOG_LIMIT": "2"}) as process:
        site.started()
        first = site.load()
        site.is_stored(first)
        away = site.store.with_name("away")
        site.store.rename(away)
        last = site.load()
        for _ in range(4):
            last = site.load()
        wait_until(lambda: (site.spool / last).exists(), "it is received all the same")
        site.tells(process, "the store is away")
        site.tells(process, "received segments wait")
        away.rename(site.store)
        site.is_stored(last)
        site.tells(process, "the store is back after")
        wait_until(lambda: len(list(site.spool.glob("0*"))) <= 2, "the directory is cleared")
    site.has_no_gap(first, last)
    assert [text for text in messages(site.logged, "WARNING") if "is away" in text] == ["the store is away; trying again until it is back"]
    assert [text[:21] for text in messages(site.logged, "INFO") if "is back" in text] == ["the store is back aft"]
    assert [text.lstrip("0123456789") for text in messages(site.logged, "ERROR")] == [" received segments wait to be stored"]


def test_a_server_that_restarts_is_told_once_and_followed(site):
    with site.receiving() as process:
        site.started()
        first = site.load()
        site.server.stop()
        site.server.start()
        last = site.load()
        site.is_stored(last)
        site.tells(process, "the server is back")
    site.has_no_gap(first, last)
    assert messages(site.logged, "WARNING") == ["the server is away; trying again until it is back"]
    assert len([text for text in messages(site.logged, "INFO") if text.startswith("the server is back")]) == 1


def test_receiving_begins_when_the_server_comes_up(site):
    site.server.stop()
    with site.receiving() as process:
        site.tells(process, "the server is away")
        site.server.start()
        site.is_stored(site.load())


def test_an_empty_directory_goes_on_at_the_slot_however_far_the_server_is(site):
    site.server.psql("select pg_create_physical_replication_slot('wal_e', true)")
    first = site.server.psql("select pg_walfile_name(restart_lsn) from pg_replication_slots")
    for _ in range(4):
        last = site.load()
    site.server.psql("checkpoint")
    with site.receiving():
        site.is_stored(last)
    site.has_no_gap(first, last)


def lost_spool(site):
    """Receive into a directory that is lost with segments in it that are not stored; return the first and the last segment."""
    with site.receiving(ends=False) as process:
        site.started()
        first = site.load()
        site.is_stored(first)
        away = site.store.with_name("away")
        site.store.rename(away)
        for _ in range(3):
            last = site.load()
        wait_until(lambda: (site.spool / last).exists(), "it is received")
        site.server.wait_for(f"select restart_lsn > '{site.server.psql('select pg_current_wal_flush_lsn()')}'::pg_lsn - 1000000 from pg_replication_slots")
        process.kill()
    away.rename(site.store)
    shutil.rmtree(site.spool)
    return first, last


def test_what_was_lost_with_a_directory_is_received_again_while_the_server_has_it(site):
    first, last = lost_spool(site)
    with site.receiving():
        site.is_stored(last)
    site.has_no_gap(first, last)


def test_what_was_lost_for_good_is_an_error_until_the_gap_is_accepted(site):
    first, last = lost_spool(site)
    site.load()
    site.server.psql("checkpoint")
    site.server.psql("checkpoint")
    assert not (site.server.data / "pg_wal" / between(first, last)[1]).exists()
    for _ in range(2):
        with site.receiving(ends=False) as process:
            _, stderr = process.communicate(timeout=60)
            errors = [record for record in records(stderr) if record.level == "ERROR"]
            assert process.returncode == 2 and [record.error for record in errors] == ["WalGap"], stderr
            assert between(first, last)[1] in errors[0].message
    with site.receiving("--accept-gap"):
        site.is_stored(site.load())


@pytest.fixture
def standby(site, make_server):
    """A standby of the site's server that streams from it."""
    target = site.server.directory / "standby"
    site.server.run([bindir() / "pg_basebackup", "-D", target, "-c", "fast", "-X", "stream", "-R"])
    server = make_server(data=target)
    server.start(hot_standby="on")
    return server


def test_a_promotion_is_followed(site, standby):
    site.server.psql("create table t (n int)")
    with site.receiving(source=standby):
        standby.wait_for("select count(*) = 1 from pg_replication_slots where active")
        first = site.load()
        site.is_stored(first)
        site.server.psql("insert into t values (1)")
        last_on_1 = site.server.psql("select pg_walfile_name(pg_current_wal_flush_lsn())")
        wait_until(lambda: site.streaming() == [last_on_1], "the end of the old timeline is stored")
        site.server.stop()
        standby.promote()
        standby.psql("insert into t values (2)")
        name = switched(standby)
        site.is_stored(name)
        assert name[:8] == "00000002"
        wait_until(lambda: last_on_1 not in site.streaming(), "the unfinished segment of the old timeline is deleted")
        site.is_stored(switched_after_insert(standby))
    names = stored_wal(site.store)
    assert last_on_1 not in names, "an unfinished segment must not be stored as a finished one"
    assert not (site.spool / f"{last_on_1}.partial").exists()
    assert (site.store / "wal_005" / "00000002.history.lzo").exists()
    for name in [name for name in names if name.startswith("00000002")]:
        assert site.decoded(f"{name}.lzo", name).read_bytes() == (standby.data / "pg_wal" / name).read_bytes()


def switched_after_insert(server):
    server.psql("insert into t values (3)")
    return switched(server)


def test_a_history_that_left_what_was_received_is_refused(site, standby):
    """The server's standby is promoted without having got all of the WAL."""
    with site.receiving():
        site.started()
        site.load()
        standby.stop()
        last = site.load()
        site.is_stored(last)
    site.server.stop()
    standby.start(primary_conninfo="")
    standby.promote()
    standby.psql("select pg_switch_wal()")
    with site.receiving(source=standby, ends=False) as process:
        _, stderr = process.communicate(timeout=60)
    errors = [record for record in records(stderr) if record.level == "ERROR"]
    assert process.returncode == 2 and [record.error for record in errors] == ["WalGap"], stderr
    assert "history does not contain" in errors[0].message
    shutil.rmtree(site.spool)
    with site.receiving(source=standby):
        wait_until(lambda: any(name.startswith("00000002") for name in stored_wal(site.store)), "the new timeline is stored")


def test_archive_command_and_wal_receive_store_the_same_bytes(site, make_server):
    site.server.stop()
    site.server.start(archive_mode="on", archive_command="wal-e wal-push %p", max_wal_senders="5")
    target = site.server.directory / "standby"
    site.server.run([bindir() / "pg_basebackup", "-D", target, "-c", "fast", "-X", "stream", "-R"])
    standby = make_server(data=target)
    standby.environ |= {name: value for name, value in site.server.environ.items() if name.startswith("WALE_")}
    standby.start(archive_mode="always")
    other = site.server.directory / "spool-of-standby"
    with site.receiving(), Site.receiving(site, source=standby, directory=other):
        site.started()
        standby.wait_for("select count(*) = 1 from pg_replication_slots where active")
        for _ in range(3):
            last = site.load()
        site.is_stored(last)
        site.server.wait_for("select count(*) = 0 from pg_ls_archive_statusdir() where name like '%.ready'")
        standby.wait_for("select count(*) = 0 from pg_ls_archive_statusdir() where name like '%.ready'")
        site.server.psql("insert into t values (1)")
        site.server.stop()
        standby.promote()
        standby.psql("insert into t values (2)")
        switched(standby)
        last = switched_after_insert(standby)
        site.is_stored(last)
        standby.wait_for("select count(*) = 0 from pg_ls_archive_statusdir() where name like '%.ready'")
        assert standby.psql("select failed_count from pg_stat_archiver") == "0"
        wait_until(lambda: (other / last).exists(), "the receiver has it too")
    assert [record for record in site.logged if record.level == "ERROR"] == []


def test_wal_fetch_refuses_what_is_unfinished(site):
    with site.receiving():
        site.is_stored(site.load())
        site.server.psql("insert into t values (1)")
        wait_until(lambda: len(site.streaming()) == 1, "the unfinished segment is stored")
    [segment] = site.streaming()
    target = site.server.directory / "fetched"
    for name in (f"{segment}.streaming", f"{segment}.streaming.lzo"):
        refusal(site.server.wal_e("wal-fetch", name, str(target), check=False), 200, "is not the name of a WAL file")
    assert site.server.wal_e("wal-fetch", segment, str(target), check=False).returncode == 1
    assert not target.exists()


def test_an_unfinished_segment_of_another_host_is_deleted_at_the_start_only_if_it_is_there_whole(site):
    with site.receiving():
        site.started()
        name = site.load()
        site.is_stored(name)
    whole, later = site.store / "wal_005" / f"{name}.streaming.lzo", site.store / "wal_005" / f"{name[:-2]}FE.streaming.lzo"
    for path in (whole, later):
        shutil.copy(site.store / "wal_005" / f"{name}.lzo", path)
        give_to_server_user(path)
    with site.receiving():
        wait_until(lambda: not whole.exists(), "it is deleted")
        site.is_stored(site.load())
    assert later.exists()


def test_two_in_one_directory_and_a_servers_own_directory_are_refused(site):
    with site.receiving():
        site.started()
        refusal(site.server.wal_e("wal-receive", str(site.spool), check=False), 1, "another wal-receive works in")
    refusal(site.server.wal_e("wal-receive", str(site.server.data / "pg_wal"), check=False), 2, "is not a directory to receive into")
    refusal(site.server.wal_e("wal-receive", str(site.server.data), check=False), 2, "is not a directory to receive into")


def test_another_cluster_is_refused(site, make_server):
    with site.receiving():
        site.started()
        site.is_stored(site.load())
    other = make_server(wal_segsize_mb=16)
    other.start()
    with site.receiving(source=other, ends=False) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2 and "different clusters" in stderr
    with site.receiving(source=other, directory=site.server.directory / "new", ends=False) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2 and "this prefix belongs to another cluster" in stderr
    assert other.psql("select count(*) from pg_replication_slots") == "0"


def test_progress_is_measured_to_the_byte_and_published(site):
    metrics = site.server.directory / "wal-receive.prom"
    with site.receiving("--metrics-file", str(metrics)):
        site.started()
        stored = site.load()
        site.is_stored(stored)
        site.server.psql("insert into t values (1)")
        end = position(site.server.psql("select pg_current_wal_flush_lsn()"))
        reporter = Reporter(SpoolSeen(site.spool), PusherSeen([]), "wal_e", site.server.env, "")
        wait_until(lambda: (progress := reporter.measure()) and progress.received == progress.server >= end, "all is received")
        progress = reporter.measure()
        assert progress.stored == (int(stored[16:], 16) + 1) * 1024 * 1024 and progress.behind_bytes == 0
        assert 0 < progress.kept_bytes < 16 * 1024 * 1024
        assert "wale_receive_store_available 1" in metrics.read_text()
    reporter = Reporter(SpoolSeen(site.spool), PusherSeen(["one"]), "wal_e", {}, str(metrics))
    reporter.publish(progress)
    assert f"wale_receive_received_position_bytes {int(progress.received)}\n" in metrics.read_text()
    assert "wale_receive_waiting_segments 1\n" in metrics.read_text()


class SpoolSeen(Spool):
    """A spool that another process works in, looked at."""

    def __init__(self, path):
        self.directory = str(path)


class PusherSeen:
    is_kept_waiting = False

    def __init__(self, waiting):
        self.waiting = lambda: waiting


def test_no_process_outlives_a_killed_wal_receive(site):
    with site.receiving(ends=False) as process:
        site.started()
        [receiver] = receivers(process)
        process.kill()
        wait_until(lambda: not Path(f"/proc/{receiver}").exists(), "pg_receivewal ends")


def test_a_network_store_that_is_away_is_waited_for_and_told_once(make_server):
    network = NETWORKS["s3"]()
    server = make_server(wal_segsize_mb=1)
    server.start(archive_mode="off")
    spool = server.directory / "spool"

    def is_stored(name):
        wait_until(lambda: any(key.endswith(f"wal_005/{name}.lzo") for key in network.objects()), f"{name} is stored")

    with FaultProxy(network.port) as proxy, contextlib.ExitStack() as refused:
        place = {**network.environ_at(proxy.port), "WALE_CONNECT_TIMEOUT": "2"}
        refused.enter_context(proxy.refusing())
        with Watched(server).started("wal-receive", str(spool), *INTERVAL, env={**server.env, **place}) as process:
            at_start = heard(process, "the store is away")
            refused.close()
            server.wait_for("select count(*) = 1 from pg_replication_slots where active")
            server.psql("create table t (n int)")
            is_stored(switched(server))
            with proxy.refusing():
                for _ in range(4):
                    server.psql("insert into t select generate_series(1, 20000)")
                    last = switched(server)
                wait_until(lambda: (spool / last).exists(), "it is received")
                said = heard(process, "the store is away")
            is_stored(last)
            said += heard(process, "the store is back after")
            logged = records(at_start + said + ended(process, -signal.SIGTERM))
    assert messages(logged, "WARNING") == 2 * ["the store is away; trying again until it is back"]
    assert len([text for text in messages(logged, "INFO") if text.startswith("the store is back")]) == 2
    assert network.unfinished() == 0
