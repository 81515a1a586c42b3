"""check over a store in memory that misbehaves, and its judgement of commands, clocks and disks."""

import os
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta

import build_wal
import gevent
import pytest
from fix_memory import open_memory

from wal_e import log
from wal_e.archive import layout
from wal_e.archive.identity import claim_identity
from wal_e.blobstore.memory import MemoryStore
from wal_e.cli.check import result_text
from wal_e.errors import BlobExists, ServerRefused, ServerUnavailable, StoreForbidden, StoreUnavailable, Terminated, WaleError
from wal_e.operators import check_command, check_server
from wal_e.operators.check import BACKUPS, MACHINE, SERVER, STORE, Result, check, failure
from wal_e.operators.check_subject import Options, Subject
from wal_e.operators.wal_status import Disk
from wal_e.pipeline.process import Blocking
from wal_e.settings import Settings

OPTIONS = Options(None, True, 1, timedelta(days=7), False)


class Store(MemoryStore):
    """A memory store whose clock goes ahead of ours, and where each verb can be broken."""

    def __init__(self, ahead=timedelta(0), **broken):
        super().__init__()
        self.ahead = ahead
        self.broken = broken

    def put(self, key, chunks):
        if error := self.broken.get("put"):
            raise error
        size = super().put(key, chunks)
        content, moment = self._contents[key]
        self._contents[key] = (content, moment + self.ahead)
        return size

    def create(self, key, chunks):
        if self.broken.get("create") == "overwrites":
            return super().put(key, chunks)
        if self.broken.get("create") == "looks first":
            if key in self._contents:
                raise BlobExists(key)
            gevent.sleep(0)
            return super().put(key, chunks)
        return super().create(key, chunks)

    def get(self, key, *, start=0, length=None):
        if error := self.broken.get("get"):
            raise error
        return iter([b"something else"]) if "changed" in self.broken and key.startswith(layout.PROBES) else super().get(key, start=start, length=length)

    def list(self, prefix=""):
        if error := self.broken.get("list"):
            raise error
        return iter(()) if "forgets" in self.broken else super().list(prefix)

    def delete(self, keys):
        if error := self.broken.get("delete"):
            raise error
        super().delete(keys)

    @property
    def keys(self):
        return sorted(self._contents)


def checked(store=None, variables=None, options=OPTIONS, open_archive=None):
    """Do the checks; return the results by name, and what ended them, if anything did."""
    environ = {"WALE_FILE_PREFIX": "file://localhost/x", "PATH": os.environ["PATH"], **(variables or {})}
    waits, told = Blocking(), []
    subject = Subject(Settings(environ), environ, waits, open_archive or (lambda: open_memory(store)), options, lambda: datetime.now(UTC))
    results = check(subject, told.append)
    assert told == results
    return {result.name: result for result in results}


def states(results, *of):
    return {name: results[name].state for name in of} if of else {name: one.state for name, one in results.items() if one.state in ("warn", "fail")}


def test_a_check_needs_only_what_comes_before_it():
    before = set()
    for one in (*MACHINE, *STORE, *SERVER, *BACKUPS):
        assert set(one.needs) <= before, one.name
        assert one.name not in before
        before.add(one.name)


def test_all_is_well_in_an_empty_store_but_that_there_is_no_backup():
    store = Store()
    assert states(checked(store)) == {"last backup": "warn"}
    assert store.keys == []


@pytest.mark.parametrize(
    ("ahead", "state", "words"),
    [
        (timedelta(seconds=30), "ok", "30 s ahead of"),
        (timedelta(seconds=90), "warn", "1 min 30 s ahead of"),
        (timedelta(seconds=-90), "warn", "behind"),
        (timedelta(minutes=14), "warn", "14 min"),
        (timedelta(minutes=16), "fail", "16 min 00 s ahead of"),
        (timedelta(minutes=-16), "fail", "behind"),
    ],
)
def test_clocks_may_differ_by_a_minute_and_not_by_a_quarter_of_an_hour(ahead, state, words):
    found = checked(Store(ahead))["clock"]
    assert (found.state, words in found.seen) == (state, True), found
    assert (state == "ok") != bool(found.hint)


def test_times_in_whole_seconds_are_no_difference():
    class Whole(Store):
        def stat(self, key):
            return super().stat(key)._replace(modified=datetime.now(UTC).replace(microsecond=0))

    assert checked(Whole())["clock"].seen == "the store's and this machine's agree"


def test_a_store_that_overwrites_is_a_failure_and_one_that_only_looks_first_a_warning():
    store = Store(create="overwrites")
    assert states(checked(store)) == {"create": "fail", "last backup": "warn"}
    assert store.keys == []
    found = checked(Store(create="looks first"))["create"]
    assert (found.state, "4 of 4" in found.seen) == ("warn", True)
    assert "one server only" in found.hint


def test_a_store_that_changes_or_does_not_list_what_it_holds_is_a_failure():
    assert states(checked(Store(changed=True)), "read", "clock", "list") == {"read": "fail", "clock": "skip", "list": "ok"}
    assert states(checked(Store(forgets=True)), "read", "list", "last backup") == {"read": "ok", "list": "fail", "last backup": "skip"}


def test_credentials_that_only_read_are_tried_for_reading():
    store = Store(put=StoreForbidden("not allowed to write"), delete=StoreForbidden("not allowed to delete"))
    claim_identity(store, build_wal.SYSTEM_IDENTIFIER, ".lzo")
    found = checked(store)
    assert states(found, "write", "read", "list", "create", "clock", "delete") == {
        "write": "fail", "read": "ok", "list": "ok", "create": "skip", "clock": "skip", "delete": "skip",
    }  # fmt: skip
    assert str(build_wal.SYSTEM_IDENTIFIER) in found["identity"].seen


def test_credentials_that_may_not_delete_are_a_warning_and_the_next_check_tidies_up():
    store = Store(delete=StoreForbidden("not allowed to delete"))
    found = checked(store)["delete"]
    assert (found.state, "not allowed to delete" in found.seen) == ("warn", True)
    left = store.keys
    assert len(left) == 3
    store.broken.clear()
    checked(store)
    assert store.keys == left, "another check may be at work"
    for key in left[:2]:
        content, moment = store._contents[key]
        store._contents[key] = (content, moment - timedelta(hours=2))
    assert "2 that earlier checks left" in checked(store)["list"].seen
    assert store.keys == left[2:]


@pytest.mark.parametrize("verb", ["get", "list"])
def test_a_signal_removes_the_probes(verb):
    store = Store(**{verb: Terminated(15)})
    with pytest.raises(Terminated):
        checked(store)
    assert store.keys == []


def test_a_probe_that_was_stored_although_the_store_said_no_is_removed():
    class Late(Store):
        def put(self, key, chunks):
            super().put(key, chunks)
            raise StoreUnavailable("the answer was lost")

    store = Late()
    assert states(checked(store), "write", "read", "list") == {"write": "fail", "read": "ok", "list": "ok"}
    assert store.keys == []


def test_a_store_that_cannot_be_opened_is_told_with_a_hint_and_all_that_needs_it_is_left_out():
    def away():
        raise StoreUnavailable("the store does not answer", "No route to host.")

    found = checked(open_archive=away)
    assert found["store"].seen == "the store does not answer. No route to host."
    assert "proxy" in found["store"].hint
    assert {found[one.name].seen for one in (*STORE[2:], *BACKUPS)} == {"store failed"}


def test_the_error_has_the_status_of_the_worst_and_names_all():
    results = [
        Result("one", "ok", "fine", ""),
        Result("two", "skip", "one failed", ""),
        Result("three", "fail", "", "", ServerUnavailable("no server")),
        Result("four", "fail", "", "", ServerRefused("no archive")),
    ]
    assert failure(results[:2]) is None
    assert failure(results[:3]).status == 1
    error = failure(results)
    assert (type(error), error.status, error.message) == (ServerRefused, 2, "2 of 3 checks failed")
    assert error.detail == "three: no server; four: no archive."


def test_a_line_has_its_explanation_below_and_shows_no_secret():
    log.hide("topsecret")
    error = WaleError("it is topsecret", "In two\nlines.", "Do this.")
    lines = result_text(Result("store", "fail", "", "Do this.", error)).splitlines()
    assert lines[0].startswith("FAIL  store ")
    assert lines[0].endswith("  it is ********")
    assert [line.lstrip() for line in lines[1:]] == ["In two lines.", "Do this."]
    assert {len(line) - len(line.lstrip()) for line in lines[1:]} == {lines[0].index("it is")}


OURS = (
    "wal-e wal-push %p",
    "/usr/bin/wal-e --envdir /etc/wal-e wal-push %p",
    'envdir /etc/wal-e /opt/wal-e/bin/wal-e wal-push "%p"',
    "python3 -m wal_e wal-push %p",
    "test -e /x || wal-e wal-push %p",
    "(wal-e wal-push %p)",
)
NOT_OURS = ("", "cp %p /mnt/%f", "pgbackrest --stanza=main archive-push %p", "wal-g wal-push %p", "wal-e wal-fetch %f %p", "/bin/true", "echo wal-e %p")
USELESS = (
    "wal-e wal-push",
    "wal-e wal-push %%p",
    "wal-e wal-push %p || true",
    "wal-e wal-push %p; exit 0",
    "wal-e wal-push %p ; /bin/true",
    "wal-e wal-push %p || :",
)


def test_archive_commands_are_told_apart():
    for command in OURS:
        assert check_command.judge(command, {"PATH": ""}).state == "ok", command
    for command in (*NOT_OURS, *USELESS):
        with pytest.raises(ServerRefused) as refused:
            check_command.judge(command, {"PATH": ""})
        assert refused.value.hint
    shown = check_command.judge("AWS_SECRET_ACCESS_KEY=abc PGPASSWORD='x' SWIFT_USER=me wal-e wal-push %p", {}).text
    assert shown == "AWS_SECRET_ACCESS_KEY=******** PGPASSWORD=******** SWIFT_USER=me wal-e wal-push %p"


@pytest.mark.parametrize(
    ("disk", "state"),
    [
        (Disk(50 << 30, 100 << 30, None), "ok"),
        (Disk(50 << 30, 100 << 30, 1 << 20), "ok"),
        (Disk(4 << 30, 100 << 30, None), "warn"),
        (Disk(50 << 30, 100 << 30, 100 << 20), "warn"),
        (Disk(1 << 20, 100 << 30, None), "fail"),
    ],
)
def test_free_space_is_measured_by_share_by_time_and_by_segments(disk, state):
    class Found:
        def __init__(self, **facts):
            vars(self).update(facts)

    subject = Found(status=Found(disk=disk), directory=Found(control=Found(segment_size=16 << 20)))
    if state == "fail":
        with pytest.raises(WaleError, match="no space left"):
            check_server.free_space(subject)
    else:
        assert check_server.free_space(subject).state == state


@pytest.fixture
def keyring(monkeypatch):
    """A keyring with a key, and a function that takes the secret half of it away."""
    home = tempfile.mkdtemp(prefix="gpg", dir="/tmp")  # a short path: the agent's socket is in it
    monkeypatch.setenv("GNUPGHOME", home)

    def gpg(*words, **options):
        return subprocess.run(["gpg", "--batch", "--quiet", "--passphrase", "", *words], check=True, capture_output=True, **options).stdout

    gpg("--quick-generate-key", "Archive <archive@example.org>", "future-default", "default", "never")

    def lose_secret():
        fingerprint = next(line.split(":")[9] for line in gpg("--list-keys", "--with-colons").decode().splitlines() if line.startswith("fpr"))
        gpg("--yes", "--delete-secret-keys", fingerprint)

    yield lose_secret
    subprocess.run(["gpgconf", "--kill", "all"], check=False)
    shutil.rmtree(home, ignore_errors=True)


def test_a_key_that_cannot_encrypt_is_a_failure_and_one_that_cannot_decrypt_here_a_warning(keyring):
    def run(key):
        return checked(Store(), {"WALE_GPG_KEY_ID": key})

    found = run("archive@example.org")
    assert states(found, "gpg", "codec") == {"gpg": "ok", "codec": "ok"}
    assert "gpg (GnuPG)" in found["gpg"].seen
    found = run("nobody@example.org")
    assert found["codec"].state == "fail"
    assert "Import the public key" in found["codec"].hint
    keyring()
    found = run("archive@example.org")
    assert found["codec"].state == "warn"
    assert "secret key" in found["codec"].hint


def test_a_tool_that_is_missing_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    found = checked(Store(), {"WALE_GPG_KEY_ID": "someone"})
    assert states(found, "lzop", "gpg", "codec", "store") == {"lzop": "fail", "gpg": "fail", "codec": "skip", "store": "ok"}
    assert "apt-get install gnupg" in found["gpg"].hint


def test_without_numpy_there_is_a_warning_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    found = checked(Store())["numpy"]
    assert found.state == "warn"
    assert "pip install 'wal-e[verify]'" in found.hint


def test_a_setting_that_cannot_be_read_and_an_unknown_one_are_told():
    found = checked(Store(), {"WALE_RETRIES": "many"})
    assert states(found, "settings", "store") == {"settings": "fail", "store": "skip"}
    found = checked(Store(), {"WALE_PREFETCH": "1", "WALE_S3_PREFX": "s3://x"})["settings"]
    assert (found.state, found.seen) == ("warn", "WALE_PREFETCH, WALE_S3_PREFX are not settings")
