"""What wal-push and the resident archiver say to each other: over a real socket, with an archiver that answers as the test likes."""

import contextlib
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
import time

import pytest
from fix_archive import records
from fix_postgres import wait_until
from hypothesis import given
from hypothesis import strategies as st

from wal_e import log
from wal_e.errors import LockHeld, StoreUnavailable, UsageError, WalConflict, WaleError
from wal_e.operators import archiver_station, handshake
from wal_e.operators.archiver_station import Request, Station
from wal_e.operators.handshake import archiver_answers, fingerprint, pushed_by_archiver, receive, send
from wal_e.settings import Settings

SEG = "000000010000000000000003"
ENVIRON = {"WALE_FILE_PREFIX": "file://localhost/store", "WALE_LOG_DESTINATION": "stderr"}


@pytest.fixture
def settings():
    settings = Settings(ENVIRON)
    log.configure(settings, "info")
    return settings


@pytest.fixture
def pg_wal(data_directory):
    return str(data_directory / "pg_wal")


@pytest.fixture
def open_station():
    """Open stations that give these replies; ``asked`` of each has the requests."""
    stations = []

    def open_one(pg_wal, *replies):
        asked = []

        def answer(request):
            asked.append(request)
            yield from replies

        station = Station(pg_wal, answer)
        station.asked = asked
        stations.append(station)
        return station

    yield open_one
    for station in stations:
        with contextlib.suppress(OSError):
            station.close()


@contextlib.contextmanager
def impostor(pg_wal, reply):
    """Something that listens in the archiver's place: takes one request and sends these bytes; hangs up, unless they end in "..."."""
    os.makedirs(os.path.join(pg_wal, ".wal-e"), exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.join(pg_wal, ".wal-e", "archiver.sock"))
        listener.listen()
        clients = []

        def attend():
            client = listener.accept()[0]
            clients.append(client)
            receive(client)
            with contextlib.suppress(BrokenPipeError):  # it came only to see who is there
                client.sendall(reply.removesuffix(b"..."))
            if not reply.endswith(b"..."):
                client.close()

        thread = threading.Thread(target=attend)
        thread.start()
        yield
        thread.join()
        for client in clients:
            client.close()


def message(*fields):
    payload = "\0".join(fields).encode()
    return struct.pack(">I", len(payload)) + payload


def raw_client(pg_wal):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(os.path.join(pg_wal, ".wal-e", "archiver.sock"))
    return client


def is_hung_up(client):
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


class TestAnswers:
    def test_stored_is_success(self, open_station, pg_wal, segment, settings):
        station = open_station(pg_wal, ("stored",))
        path = segment(SEG)
        assert pushed_by_archiver(settings, path)
        found = os.stat(path)
        assert station.asked == [Request(SEG, found.st_dev, found.st_ino, fingerprint(settings), 300.0)]

    def test_a_relative_path_is_as_good(self, open_station, pg_wal, segment, settings, monkeypatch):
        open_station(pg_wal, ("stored",))
        segment(SEG)
        monkeypatch.chdir(os.path.dirname(pg_wal))
        assert pushed_by_archiver(settings, f"pg_wal/{SEG}")
        monkeypatch.chdir(pg_wal)
        assert pushed_by_archiver(settings, SEG)

    def test_other_leaves_the_work_to_the_client_and_says_why(self, open_station, pg_wal, segment, settings, capsys):
        open_station(pg_wal, ("other", "It was started with other settings."))
        assert not pushed_by_archiver(settings, segment(SEG))
        (record,) = records(capsys.readouterr().err)
        assert (record.level, record.detail) == ("INFO", "It was started with other settings.")

    def test_a_failure_is_raised_as_the_archiver_met_it(self, open_station, pg_wal, segment, settings):
        open_station(pg_wal, ("failed", "WalConflict", "another\ncontent", "Split brain.", "Find it."))
        with pytest.raises(WalConflict) as caught:
            pushed_by_archiver(settings, segment(SEG))
        error = caught.value
        assert (error.message, error.detail, error.hint, error.status) == ("another\ncontent", "Split brain.", "Find it.", 2)

    @pytest.mark.parametrize("kind", ["NewError", "EXIT_OK", "annotations", "Terminated", "local_error"])
    def test_a_failure_of_an_unknown_class_is_a_failure_all_the_same(self, open_station, pg_wal, segment, settings, kind):
        open_station(pg_wal, ("failed", kind, "m", "d", "h"))
        with pytest.raises(WaleError, match="m"):
            pushed_by_archiver(settings, segment(SEG))

    def test_a_dropped_file_is_a_success_with_an_error_in_the_log(self, open_station, pg_wal, segment, settings, capsys):
        open_station(pg_wal, ("dropped", "WalDropped", "it was dropped", "d", "h"))
        assert pushed_by_archiver(settings, segment(SEG))
        (record,) = records(capsys.readouterr().err)
        assert (record.level, record.error) == ("ERROR", "WalDropped")

    def test_why_it_takes_so_long_is_said_once(self, open_station, pg_wal, segment, settings, capsys):
        open_station(pg_wal, ("working", ""), ("working", "The store is away."), ("working", "It still is."), ("stored",))
        assert pushed_by_archiver(settings, segment(SEG))
        (record,) = records(capsys.readouterr().err)
        assert (record.level, record.detail) == ("WARNING", "The store is away.")

    def test_nobody_waits_for_better_times_while_the_server_shuts_down(self, open_station, pg_wal, data_directory, segment, settings, monkeypatch):
        pid_file = data_directory / "postmaster.pid"
        monkeypatch.chdir(data_directory)
        open_station(pg_wal, ("working", ""), ("working", "The store is away."), ("stored",))
        segment(SEG)
        pid_file.write_text("1\n/data\n1700000000\n5432\n/tmp\n\n 123 4\nready   \n")
        assert pushed_by_archiver(settings, f"pg_wal/{SEG}")
        pid_file.write_text("1\n/data\n1700000000\n5432\n/tmp\n\n 123 4\nstopping\n")
        for path in (f"pg_wal/{SEG}", f"{pg_wal}/{SEG}"):
            with pytest.raises(StoreUnavailable, match="shutting down") as caught:
                pushed_by_archiver(settings, path)
            assert caught.value.detail == "The store is away."

    def test_nobody_waits_for_ever(self, pg_wal, segment, monkeypatch):
        monkeypatch.setattr(handshake, "SLACK_S", 0.0)
        monkeypatch.setattr(handshake, "SILENCE_S", 60)
        settings = Settings({**ENVIRON, "WALE_PUSH_DEADLINE": "0.001"})
        with impostor(pg_wal, message("1", "working", "Busy.") * 1000 + b"..."):
            started = time.monotonic()
            with pytest.raises(StoreUnavailable, match="in time"):
                pushed_by_archiver(settings, segment(SEG))
            assert time.monotonic() - started < 30


class TestTheClientDoesTheWorkItself:
    def test_when_there_is_no_archiver(self, segment, settings, capsys):
        assert not pushed_by_archiver(settings, segment(SEG))
        assert capsys.readouterr().err == ""

    def test_when_the_file_is_not_there_for_whoever_asks_next_to_say(self, open_station, pg_wal, settings):
        station = open_station(pg_wal, ("stored",))
        assert not pushed_by_archiver(settings, os.path.join(pg_wal, SEG))
        assert station.asked == []

    def test_when_a_killed_archiver_left_its_socket(self, pg_wal, segment, settings, capsys):
        with impostor(pg_wal, b""):
            raw_client(pg_wal).close()
        assert stat.S_ISSOCK(os.stat(os.path.join(pg_wal, ".wal-e", "archiver.sock")).st_mode)
        assert not pushed_by_archiver(settings, segment(SEG))
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize(
        "reply",
        [
            b"", b"\0\0", b"\0\0\0\0", b"\xff\xff\xff\xff", b"HTTP/1.1 200 OK\r\n\r\n", message("1", "stored")[:-1], message("2", "stored"), message("1"),
            message("stored"), message("1", "stored", "almost"), message("1", "failed", "WaleError"), message("1", "unknown"), message("\ud7ff", ""),
        ],
    )  # fmt: skip
    def test_when_the_reply_is_none(self, pg_wal, segment, settings, reply):
        with impostor(pg_wal, reply):
            assert not pushed_by_archiver(settings, segment(SEG))

    def test_when_the_archiver_hangs(self, pg_wal, segment, settings, capsys, monkeypatch):
        monkeypatch.setattr(handshake, "SILENCE_S", 0.2)
        with impostor(pg_wal, b"..."):
            assert not pushed_by_archiver(settings, segment(SEG))
        (record,) = records(capsys.readouterr().err)
        assert record.level == "WARNING"

    def test_when_it_dies_at_work(self, pg_wal, segment, settings):
        with impostor(pg_wal, message("1", "working", "")):
            assert not pushed_by_archiver(settings, segment(SEG))

    def test_when_the_listener_is_another_user(self, open_station, pg_wal, segment, settings, monkeypatch):
        station = open_station(pg_wal, ("stored",))
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        assert not pushed_by_archiver(settings, segment(SEG))
        assert station.asked == []

    def test_when_too_many_clients_are_there(self, open_station, pg_wal, segment, settings, monkeypatch):
        monkeypatch.setattr(archiver_station, "MAX_CLIENTS", 1)
        station = open_station(pg_wal, ("stored",))
        with raw_client(pg_wal):
            wait_until(lambda: station._clients == 1, "the first client is attended to")
            assert not pushed_by_archiver(settings, segment(SEG))
        wait_until(lambda: station._clients == 0, "the first client is gone")
        assert pushed_by_archiver(settings, segment(SEG))


class TestRobustness:
    GARBAGE = (
        b"\0", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, b"\0\0\0\0", b"\0\0\0\x05abc", message("1", "push", SEG), message("1"),
        message("1", "push", SEG, "x", "y", "z", "w"), message("9", "push", SEG, "1", "2", "3", "4"), message(""), message("1", "push", *["a"] * 40),
        message("1", "push", SEG, "1", "2", "s", "nan"), message("1", "push", SEG, "1", "2", "s", "inf"), message("1", "push", SEG, "1", "2", "s", "-1"),
        b"\0\x01\0\0" + bytes(65536),
    )  # fmt: skip

    @pytest.mark.parametrize("data", GARBAGE)
    def test_garbage_harms_nobody(self, open_station, pg_wal, segment, settings, data):
        station = open_station(pg_wal, ("stored",))
        with raw_client(pg_wal) as client:
            with contextlib.suppress(BrokenPipeError):
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):  # it did not even read to the end
                assert receive(client) in (None, ["1", "unknown"])
        assert station.asked == []
        assert pushed_by_archiver(settings, segment(SEG))

    def test_a_message_too_long_is_not_waited_for(self, open_station, pg_wal, monkeypatch):
        monkeypatch.setattr(archiver_station, "REQUEST_S", 60)
        open_station(pg_wal, ("stored",))
        with raw_client(pg_wal) as client:
            started = time.monotonic()
            client.sendall(b"\0\x02\0\0")
            assert is_hung_up(client)
            assert time.monotonic() - started < 30

    def test_a_client_that_says_nothing_is_sent_away_and_holds_up_nobody(self, open_station, pg_wal, segment, settings, monkeypatch):
        monkeypatch.setattr(archiver_station, "REQUEST_S", 0.2)
        open_station(pg_wal, ("stored",))
        with raw_client(pg_wal) as client:
            assert pushed_by_archiver(settings, segment(SEG))
            assert is_hung_up(client)

    def test_a_client_that_goes_away_ends_its_answer(self, pg_wal, segment):
        ended = threading.Event()

        def answer(request):
            try:
                while True:
                    yield ("working", "")
            finally:
                ended.set()

        station = Station(pg_wal, answer)
        try:
            with raw_client(pg_wal) as client:
                send(client, "push", SEG, "1", "2", "x", "3")
                receive(client)
            assert ended.wait(10)
        finally:
            station.close()

    def test_several_clients_are_answered_at_once(self, pg_wal, segment, settings):
        together = threading.Barrier(5)

        def answer(request):
            together.wait(10)
            yield ("stored",)

        station = Station(pg_wal, answer)
        try:
            path, answers = segment(SEG), []
            threads = [threading.Thread(target=lambda: answers.append(pushed_by_archiver(settings, path))) for _ in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert answers == [True] * 5
        finally:
            station.close()

    @given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=50), max_size=8))
    def test_a_message_arrives_as_it_was_sent(self, fields):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            send(ours, *fields)
            assert receive(theirs) == ["1", *fields]

    def test_long_texts_are_cut_to_what_may_be_sent(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            thread = threading.Thread(target=send, args=(ours, "failed", *["\N{SNOWMAN}" * 100000] * 2, "a\0b"))
            thread.start()
            _, kind, *texts = receive(theirs)
            thread.join()
        assert (kind, [len(text) for text in texts]) == ("failed", [8000, 8000, 2])


class TestStation:
    def test_the_socket_is_for_its_owner_only(self, open_station, pg_wal):
        open_station(pg_wal)
        assert stat.S_IMODE(os.stat(os.path.join(pg_wal, ".wal-e", "archiver.sock")).st_mode) == 0o600

    def test_there_is_one_archiver_per_cluster(self, open_station, pg_wal, segment, settings):
        first = open_station(pg_wal, ("stored",))
        with pytest.raises(LockHeld, match="another archiver"):
            open_station(pg_wal)
        assert pushed_by_archiver(settings, segment(SEG))
        first.close()
        open_station(pg_wal, ("stored",))
        assert pushed_by_archiver(settings, segment(SEG))

    def test_of_two_that_start_at_once_one_works_and_the_other_is_refused(self, pg_wal):
        for _ in range(100):
            together, outcomes = threading.Barrier(2), []

            def start(together=together, outcomes=outcomes):
                together.wait(10)
                try:
                    outcomes.append(Station(pg_wal, lambda request: iter([("stored",)])))
                except LockHeld:
                    outcomes.append(None)

            threads = [threading.Thread(target=start) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            (station,) = [outcome for outcome in outcomes if outcome]
            assert len(outcomes) == 2
            assert archiver_answers(pg_wal)
            station.close()

    def test_a_socket_that_was_left_is_replaced(self, open_station, pg_wal, segment, settings):
        with impostor(pg_wal, b""):
            raw_client(pg_wal).close()
        os.link(os.path.join(pg_wal, ".wal-e/archiver.sock"), os.path.join(pg_wal, ".wal-e/archiver.sock.new"))
        open_station(pg_wal, ("stored",))
        assert pushed_by_archiver(settings, segment(SEG))

    def test_closing_removes_the_socket_but_not_that_of_another(self, open_station, pg_wal):
        station = open_station(pg_wal)
        path = os.path.join(pg_wal, ".wal-e", "archiver.sock")
        station.close()
        assert not os.path.exists(path)
        second = open_station(pg_wal)
        os.unlink(path)
        open(path, "w").close()
        second.close()
        assert os.path.exists(path)

    @pytest.mark.parametrize("what", ["archiver.sock", "archiver.lock"])
    def test_it_notices_that_it_cannot_be_found_any_more(self, open_station, pg_wal, what):
        station = open_station(pg_wal)
        assert station.is_intact()
        os.rename(os.path.join(pg_wal, ".wal-e", what), os.path.join(pg_wal, "moved"))
        assert not station.is_intact()

    def test_a_path_too_long_for_a_socket_works(self, open_station, tmp_path, settings):
        pg_wal = tmp_path / ("long" * 30) / "pg_wal"
        pg_wal.mkdir(parents=True)
        assert len(str(pg_wal)) > 107
        (pg_wal / SEG).touch()
        open_station(str(pg_wal), ("stored",))
        assert pushed_by_archiver(settings, str(pg_wal / SEG))
        assert archiver_answers(str(pg_wal))

    def test_only_the_owner_of_the_cluster_may_run_it(self, pg_wal, monkeypatch):
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(UsageError, match="owns"):
            Station(pg_wal, lambda request: iter(()))
        assert not os.path.exists(os.path.join(pg_wal, ".wal-e"))

    def test_whether_one_answers_can_be_asked(self, open_station, pg_wal):
        assert not archiver_answers(pg_wal)
        assert not os.path.exists(os.path.join(pg_wal, ".wal-e"))
        station = open_station(pg_wal)
        assert archiver_answers(pg_wal)
        station.close()
        assert not archiver_answers(pg_wal)

    def test_after_kill_minus_9_the_next_one_starts_at_once(self, open_station, pg_wal):
        code = "import sys, time; from wal_e.operators.archiver_station import Station; Station(sys.argv[1], iter); print(flush=True); time.sleep(60)"
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen([sys.executable, "-c", code, pg_wal], stdout=subprocess.PIPE, env=env) as first:
            first.stdout.readline()
            with pytest.raises(LockHeld):
                open_station(pg_wal)
            first.kill()
        open_station(pg_wal)
        assert archiver_answers(pg_wal)


class TestFingerprint:
    @pytest.mark.parametrize(
        "change",
        [
            {"WALE_FILE_PREFIX": "file://localhost/other"}, {"WALE_GPG_KEY_ID": "me"}, {"WALE_S3_ENDPOINT": "https+path://x:1"}, {"AWS_REGION": "eu-west-1"},
            {"AWS_ACCESS_KEY_ID": "id"}, {"AWS_ENDPOINT_URL": "http://x"}, {"GNUPGHOME": "/x"}, {"WALE_S3_SSE": "aws:kms"}, {"SWIFT_TENANT": "t"},
            {"STORAGE_EMULATOR_HOST": "http://x"}, {"GOOGLE_APPLICATION_CREDENTIALS": "/f"},
        ],
        ids=str,
    )  # fmt: skip
    def test_another_place_form_or_credential_makes_another_one(self, change, monkeypatch):
        before = fingerprint(Settings(ENVIRON))
        for name, value in change.items():
            monkeypatch.setenv(name, value)
        assert fingerprint(Settings({**ENVIRON, **change})) != before

    @pytest.mark.parametrize("change", [{"WALE_LOG_LEVEL": "debug"}, {"WALE_PUSH_DEADLINE": "5"}, {"WALE_NO_RENAME": "1"}, {"PATH": "/x"}], ids=str)
    def test_what_does_not_matter_makes_none(self, change, monkeypatch):
        before = fingerprint(Settings(ENVIRON))
        for name, value in change.items():
            monkeypatch.setenv(name, value)
        assert fingerprint(Settings({**ENVIRON, **change})) == before

    def test_an_option_is_as_good_as_a_variable(self):
        by_variable = Settings({"WALE_S3_PREFIX": "s3://b/p", "WALE_GPG_KEY_ID": "me"})
        assert fingerprint(Settings({}, {"s3_prefix": "s3://b/p", "gpg_key_id": "me"})) == fingerprint(by_variable)

    def test_it_does_not_give_secrets_away(self):
        assert "hunter2" not in fingerprint(Settings({**ENVIRON, "SWIFT_PASSWORD": "hunter2"}))
