"""The parts of wal-receive without a server: where it begins, what it keeps, what it puts, what it tells."""

import os
import re
import stat
import sys
import time

import build_wal
import pytest
from fix_memory import content_of

from wal_e.archive import layout
from wal_e.errors import ConfigurationError, LockHeld, ServerUnavailable, StoreUnavailable, TargetRefused, ToolMissing, WalConflict, WalGap, WrongCluster
from wal_e.operators.outage import Outage, may_pass
from wal_e.operators.receive_push import Pusher
from wal_e.operators.receive_start import first_segment
from wal_e.operators.spool import Spool
from wal_e.operators.wal_push import push
from wal_e.postgres import pg_receivewal
from wal_e.postgres.replication import Lineage, Upstream
from wal_e.postgres.wal import Lsn, Switch

MIB = 1024 * 1024
PAGE = 8192


def name_of(number, timeline=1):
    return f"{timeline:08X}00000000{number:08X}"


def stored(archive):
    return [name for blob in archive.store.list(layout.WAL) if (name := layout.parse_wal_key(blob.key, (".lzo",)))]


@pytest.fixture
def spool(tmp_path):
    return Spool(str(tmp_path / "spool"))


@pytest.fixture
def received(spool):
    """Write a file into the spool as pg_receivewal would have."""

    def write(name, content=None, **options):
        path = spool.path(name)
        with open(path, "wb") as stream:
            stream.write(build_wal.build_segment(name, **options) if content is None else content)
        os.utime(path, (time.time() - 60, time.time() - 60))
        return path

    return write


@pytest.fixture
def pusher(archive, spool):
    pusher = Pusher(archive, spool, lanes=2, limit=1000)
    pusher.introduce(Upstream(build_wal.SYSTEM_IDENTIFIER, Lsn(9 * MIB), Lineage(2, (Switch(1, Lsn(5 * MIB + 100)),), MIB)))
    return pusher


class TestLineage:
    """Timeline 1 was left in the middle of segment 2, timeline 2 at the end of segment 4."""

    lineage = Lineage(3, (Switch(1, Lsn(2 * MIB + 100)), Switch(2, Lsn(5 * MIB))), MIB)

    @pytest.mark.parametrize("number, timeline", [(0, 1), (1, 1), (2, 2), (4, 2), (5, 3), (90, 3)])
    @pytest.mark.parametrize("offset", [0, MIB - 1])
    def test_the_segment_in_which_a_timeline_ends_belongs_to_the_next(self, number, timeline, offset):
        assert self.lineage.segment_at(number * MIB + offset) == name_of(number, timeline)


class TestProgress:
    @pytest.mark.parametrize("pages, rest", [(0, 0), (1, 0), (1, 808), (127, 8), (127, 8152), (63, 800)])
    def test_the_end_of_what_was_received_is_found(self, tmp_path, pages, rest):
        start = 7 * MIB
        body = b"".join(b"\x10\xd1\x02\x00\x01\x00\x00\x00" + (start + page * PAGE).to_bytes(8, "little") + b"\xff" * (PAGE - 16) for page in range(pages + 1))
        body = body[: pages * PAGE + (rest + 16 if rest else 0)]
        (tmp_path / "partial").write_bytes(body + bytes(MIB - len(body)))
        assert pg_receivewal.received_up_to(str(tmp_path / "partial"), name_of(7), MIB) == start + len(body)


class TestEndings:
    @pytest.mark.parametrize(
        "said, kind",
        [
            ("pg_receivewal: error: unexpected termination: ERROR:  requested WAL segment 000000010000000000000001 has already been removed", WalGap),
            (
                'ERROR:  cannot read from replication slot "wal_e"\nDETAIL:  This slot has been invalidated because it exceeded the maximum reserved size.',
                WalGap,
            ),
            ("requested starting point 0/6000000 on timeline 1 is not in this server's history", WalGap),
            ("requested timeline 2 is not in this server's history", WalGap),
            ("incompatible server version 18.1; client does not support streaming from server versions newer than 15.18", ConfigurationError),
            ('ERROR:  replication slot "wal_e" is active for PID 8072', ServerUnavailable),
            ("connection to server failed: No such file or directory", ServerUnavailable),
            ("", ServerUnavailable),
        ],
    )
    def test_what_pg_receivewal_says_decides_whether_to_try_again(self, said, kind):
        error = pg_receivewal.explained(1, said)
        assert type(error) is kind
        assert may_pass(error) == (kind is ServerUnavailable)
        assert error.detail


class TestProgram:
    def test_a_program_on_path_is_taken(self, tmp_path, monkeypatch):
        program = tmp_path / "pg_receivewal"
        program.touch(mode=0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert pg_receivewal.find_program() == str(program)

    def test_a_wrapper_on_path_gives_way_to_the_program(self, tmp_path, monkeypatch):
        for name in ("bin", "lib"):
            (tmp_path / name).mkdir()
        (tmp_path / "bin" / "wrapper").touch(mode=0o755)
        (tmp_path / "bin" / "pg_receivewal").symlink_to("wrapper")
        for version in ("9", "15"):
            (tmp_path / "lib" / version / "bin").mkdir(parents=True)
            (tmp_path / "lib" / version / "bin" / "pg_receivewal").touch(mode=0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        monkeypatch.setattr(pg_receivewal, "_BIN_DIRECTORIES", (f"{tmp_path}/lib/*/bin",))
        assert pg_receivewal.find_program() == f"{tmp_path}/lib/15/bin/pg_receivewal"

    def test_without_any_it_is_said_where_it_was_looked_for(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(pg_receivewal, "_BIN_DIRECTORIES", ("/nowhere/*/bin",))
        with pytest.raises(ToolMissing, match=str(tmp_path)):
            pg_receivewal.find_program()


class TestSpool:
    def test_it_is_made_for_its_owner_only(self, spool):
        assert stat.S_IMODE(os.stat(spool.directory).st_mode) == 0o700

    def test_a_second_one_is_refused(self, spool):
        with pytest.raises(LockHeld):
            Spool(spool.directory)

    @pytest.mark.parametrize("name", ["postgresql.conf", "archive_status", "000000010000000000000001.00000028.backup"])
    def test_a_directory_with_anything_else_in_it_is_refused(self, tmp_path, name):
        (tmp_path / name).touch()
        with pytest.raises(TargetRefused, match=re.escape(name)):
            Spool(str(tmp_path))

    def test_a_directory_in_a_data_directory_is_refused(self, tmp_path):
        (tmp_path / "PG_VERSION").touch()
        with pytest.raises(TargetRefused, match="data directory"):
            Spool(str(tmp_path / "spool"))

    def test_names_are_in_the_order_of_the_wal_not_of_timelines(self, spool, received):
        for name in (name_of(6, 2), name_of(5, 2), name_of(5, 1), name_of(4, 3)):
            received(name)
        assert spool.finished() == [name_of(4, 3), name_of(5, 1), name_of(5, 2), name_of(6, 2)]

    def test_what_has_no_wal_in_it_is_tidied_away(self, spool, received):
        received(f"{name_of(4)}.partial")
        received(f"{name_of(5)}.partial", b"")
        received(f"{name_of(6)}.partial", bytes(12345))
        received("00000002.history.tmp", b"1")
        received("00000002.history", b"1\t0/5000000\tx\n")
        spool.tidy(MIB)
        assert (spool.partials(), spool.histories()) == ([name_of(4)], ["00000002.history"])
        assert sorted(os.listdir(spool.directory)) == ["00000001000000000000000" + "4.partial", "00000002.history", "wal-receive.lock"]

    def test_whose_wal_it_holds_is_known_from_the_newest_file_that_tells(self, spool, received):
        assert spool.system_identifier() is None
        received(f"{name_of(6)}.partial", bytes(MIB))
        assert spool.system_identifier() is None
        received(name_of(5), system_identifier=77)
        assert spool.system_identifier() == 77


class TestStart:
    """Where an empty directory begins; the slot keeps WAL from segment 7 of timeline 2 on, which left timeline 1 in segment 5."""

    lineage = Lineage(2, (Switch(1, Lsn(5 * MIB + 100)),), MIB)
    kept_from = Lsn(7 * MIB + 4711)

    @pytest.mark.parametrize(
        "held, gaps, expected",
        [
            ([], "refuse", name_of(7, 2)),
            ([name_of(6, 2)], "refuse", name_of(7, 2)),
            ([name_of(5, 2)], "refuse", name_of(6, 2)),
            ([name_of(3), name_of(4)], "refuse", name_of(5, 2)),
            ([name_of(3), name_of(4), name_of(5), name_of(6)], "refuse", name_of(5, 2)),
            ([name_of(3)], "refuse", name_of(4)),
            ([name_of(8, 2), name_of(3)], "refuse", name_of(4)),
            ([name_of(6, 3), name_of(9, 2)], "refuse", name_of(7, 2)),
            ([name_of(3)], "accept", name_of(7, 2)),
        ],
    )
    def test_it_is_where_the_store_ends_in_the_history_of_the_server(self, archive, segment, held, gaps, expected):
        for name in held:
            push(archive, segment(name))
        assert first_segment(archive, self.lineage, self.kept_from, gaps, lambda *_: True) == expected

    def test_it_is_nowhere_when_the_server_has_not_got_what_comes_next(self, archive, segment):
        push(archive, segment(name_of(4)))
        asked = []
        with pytest.raises(WalGap, match=name_of(5, 2)):
            first_segment(archive, self.lineage, self.kept_from, "refuse", lambda *place: bool(asked.append(place)))
        assert asked == [(2, 5 * MIB)]


class TestPusher:
    def test_segments_are_removed_when_they_are_stored_but_for_the_newest(self, pusher, archive, spool, received):
        for number in (3, 4, 5):
            received(name_of(number))
        pusher.finish()
        assert stored(archive) == [name_of(number) for number in (3, 4, 5)]
        assert spool.finished() == [name_of(5)]
        received(name_of(6))
        pusher.finish()
        assert spool.finished() == [name_of(6)]

    def test_what_could_not_be_stored_stays(self, pusher, spool, received, archive, monkeypatch, capfd):
        def away(*_):
            raise StoreUnavailable("away")

        received(name_of(3))
        received(name_of(4))
        monkeypatch.setattr(archive.store, "create", away)
        pusher.finish()
        assert spool.finished() == pusher.waiting() == [name_of(3), name_of(4)]
        assert "2 finished segments, and what is unfinished, stay in" in capfd.readouterr().err

    def test_a_failure_lets_what_has_begun_end_and_begins_nothing_more(self, pusher, archive, spool, received, monkeypatch, capfd):
        create = archive.store.create

        def away_for_3(key, chunks):
            if name_of(3) in key:
                raise StoreUnavailable("away")
            return create(key, chunks)

        for number in range(3, 9):
            received(name_of(number))
        archive.claim(build_wal.SYSTEM_IDENTIFIER)
        monkeypatch.setattr(archive.store, "create", away_for_3)
        pusher.finish()
        assert stored(archive) == []
        assert len(spool.finished()) == 6

    def test_a_segment_of_another_server_stops_all_that_follow_it(self, pusher, archive, segment, spool, received):
        push(archive, segment(name_of(3)))
        received(name_of(3), fill="zero")
        received(name_of(4), fill="zero")
        with pytest.raises(WalConflict, match="split brain"):
            pusher.run()
        assert stored(archive) == [name_of(3)]
        assert spool.finished() == [name_of(3), name_of(4)]

    def test_a_history_of_another_cluster_is_refused(self, archive, segment, spool, received):
        push(archive, segment(name_of(3)))
        received("00000002.history", b"1\t0/500064\tno recovery target specified\n")
        pusher = Pusher(archive, spool, 1, 1000)
        pusher.introduce(Upstream(77, Lsn(0), Lineage(1, (), MIB)))
        with pytest.raises(WrongCluster):
            pusher.run()
        assert stored(archive) == [name_of(3)]

    def test_histories_are_stored_before_segments(self, pusher, archive, received, monkeypatch):
        order, create = [], archive.store.create
        monkeypatch.setattr(archive.store, "create", lambda key, chunks: (order.append(key), create(key, chunks))[1])
        received(name_of(3, 1))
        received("00000002.history", b"1\t0/500064\tno recovery target specified\n")
        pusher.finish()
        assert order == ["identity_005.json", "wal_005/00000002.history.lzo", f"wal_005/{name_of(3)}.lzo"]

    def test_the_unfinished_segment_is_put_again_only_when_it_was_written_to(self, pusher, archive, received, monkeypatch):
        puts, put = [], archive.store.put
        monkeypatch.setattr(archive.store, "put", lambda key, chunks: (puts.append(key), put(key, chunks))[1])
        path = received(f"{name_of(3)}.partial", fill="zero")
        pusher.finish()
        pusher.finish()
        assert puts == [f"wal_005/{name_of(3)}.streaming.lzo"]
        with open(path, "r+b") as stream:
            stream.seek(5000)
            stream.write(b"more")
        pusher.finish()
        assert len(puts) == 2
        assert content_of(archive, puts[0])[5000:5004] == b"more"

    def test_a_segment_without_wal_is_not_put(self, pusher, archive, received, capfd):
        received(f"{name_of(3)}.partial", bytes(MIB))
        received(f"{name_of(4)}.partial", b"")
        pusher.finish()
        assert stored(archive) == []
        assert capfd.readouterr().err == ""

    def test_the_unfinished_form_goes_when_the_segment_is_stored(self, pusher, archive, spool, received):
        path = received(f"{name_of(3)}.partial")
        pusher.finish()
        assert stored(archive) == [f"{name_of(3)}.streaming"]
        os.rename(path, spool.path(name_of(3)))
        pusher.finish()
        assert stored(archive) == [name_of(3)]

    def test_the_unfinished_end_of_a_timeline_goes_when_the_next_one_has_that_position(self, pusher, archive, spool, received):
        received(f"{name_of(5)}.partial")
        pusher.finish()
        received(name_of(5, 2))
        pusher.finish()
        assert stored(archive) == [name_of(5, 2)]
        assert spool.partials() == []

    def test_one_that_was_stored_whole_while_it_was_put_goes_too(self, pusher, archive, spool, received, monkeypatch):
        path, put = received(f"{name_of(3)}.partial"), archive.store.put

        def put_slowly(key, chunks):
            content = b"".join(chunks)
            os.rename(path, spool.path(name_of(3)))
            push(archive, spool.path(name_of(3)))
            os.unlink(spool.path(name_of(3)))
            return put(key, [content])

        monkeypatch.setattr(archive.store, "put", put_slowly)
        pusher.finish()
        assert stored(archive) == [name_of(3)]


class TestOutage:
    def test_it_is_told_when_it_begins_once_a_minute_and_when_it_ends(self, capfd):
        now = [1000.0]
        outage = Outage("the store", 30, 0, lambda: now[0])
        pauses = []
        for _ in range(25):
            pauses.append(outage.failed(StoreUnavailable("no route to it"), "3 segments wait."))
            now[0] += 5
        outage.over()
        outage.over()
        lines = re.findall(r"MSG: (.*)", capfd.readouterr().err)
        assert [re.sub(r"; trying.*", "", line) for line in lines] == [
            "the store is away",
            "the store is away for 1 min 00 s",
            "the store is away for 2 min 00 s",
            "the store is back after 2 min 05 s",
        ]
        assert pauses[0] <= 0.5 and all(15 <= pause <= 30 for pause in pauses[8:])

    def test_a_single_failure_is_not_told_where_it_is_ordinary(self, capfd):
        outage = Outage("the store", 30, 1)
        for _ in range(3):
            outage.failed(StoreUnavailable("a stale connection"), "")
            assert outage.lasts
            outage.over()
        assert capfd.readouterr().err == ""
        outage.failed(StoreUnavailable("away"), "")
        outage.failed(StoreUnavailable("away"), "")
        assert capfd.readouterr().err.count("the store is away;") == 1


def test_the_program_dies_with_its_parent_and_does_not_start_without_it(tmp_path):
    argv = pg_receivewal.command("/bin/true", str(tmp_path), "wal_e", pg_receivewal.CONNECTION)
    assert argv[:4] == (sys.executable, "-m", "wal_e.postgres.pg_receivewal", str(os.getpid()))
    run = os.posix_spawn(sys.executable, [*argv[:3], "1", "/bin/true"], os.environ)
    assert os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]) == 1
    run = os.posix_spawn(sys.executable, [*argv[:4], "/bin/true"], os.environ)
    assert os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]) == 0
