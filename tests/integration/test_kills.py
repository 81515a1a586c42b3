"""SIGKILL at random moments, for every process that archives or restores: the archive stays true and complete, and the recovery comes to its end.

The moments come from a seed that is printed; TEST_SEED sets it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from fix_load import Resident, drained, dump, file_shelf, loaded, s3_shelf, whole
from fix_postgres import Server, give_to_server_user, wait_until

COMMANDS = {"wal-push": b"wal-push\0", "wal-archive": b"wal-archive\0", "wal-fetch": b"wal-fetch\0", "wal-prefetch": b"wal-prefetch\0"}
LONGEST_S = {"wal-push": 0.15, "wal-archive": 1.5, "wal-fetch": 0.1, "wal-prefetch": 0.3, "lzop": 0.004}  # from the start of one to its death


@pytest.fixture
def moments(request):
    """Random numbers, whose seed is shown when the test fails."""
    seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"TEST_SEED={seed}")
    return random.Random(seed)


class Killer:
    """Kills processes of a server, of one kind after the other, and counts those that it hit."""

    def __init__(self, server: Server, moments: random.Random, kinds: list[str]) -> None:
        self.mark = f"TEST_MARK={server.directory}".encode()
        server.environ["TEST_MARK"] = str(server.directory)
        self.moments = moments
        self.kinds = itertools.cycle(kinds)
        self.hits: Counter[str] = Counter()
        self.others = set(os.listdir("/proc"))  # what ran before is none of ours, and looking at it takes longer than lzop lives

    def kill_one(self, patience_s: float = 3) -> bool:
        """Kill the next kind of process a random moment after it is seen; false when there was none to kill."""
        kind = next(self.kinds)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if found := self.running(kind):
                time.sleep(self.moments.uniform(0, LONGEST_S[kind]))
                pid = found[0] if is_alive(found[0]) else next(iter(self.running(kind)), None)
                if pid is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        self.hits[kind] += 1
                        return True
        return False

    def running(self, *kinds: str) -> list[int]:
        """Living processes of these kinds; the shell that PostgreSQL starts for a command is none of them."""
        found = []
        for directory in (Path("/proc") / pid for pid in os.listdir("/proc") if pid not in self.others):
            with contextlib.suppress(OSError):
                argv = (directory / "cmdline").read_bytes()
                kind = "lzop" if argv.startswith(b"lzop\0") else next((kind for kind, word in COMMANDS.items() if b"\0" + word in argv), "")
                if kind in kinds and self.mark in (directory / "environ").read_bytes().split(b"\0"):
                    found.append(int(directory.name))
        return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def archiving_server(make_server, shelf_of):
    """A server that keeps all its WAL, with a base backup in its store."""
    server = make_server(wal_segsize_mb=1)
    shelf = shelf_of(server)
    server.environ |= shelf.environ
    server.configure(archive_mode="on", archive_command="wal-e wal-push %p || exit 1", wal_keep_size="8GB", max_wal_size="64MB")
    return server, shelf


@pytest.mark.parametrize("resident", [False, True], ids=["alone", "resident"])
@pytest.mark.parametrize(
    ("shelf_of", "kills"),
    [(file_shelf, 4), pytest.param(file_shelf, 100, marks=pytest.mark.slow), pytest.param(s3_shelf, 60, marks=pytest.mark.slow)],
)
def test_what_is_killed_while_it_archives_leaves_nothing_false_and_nothing_out(make_server, moments, resident, shelf_of, kills):
    server, shelf = archiving_server(make_server, shelf_of)
    killer = Killer(server, moments, ["wal-push", "lzop", *(["wal-archive"] if resident else [])])
    server.start()
    server.pgbench("-i", "-q", "-s", "1")
    with contextlib.ExitStack() as stack:
        archiver = stack.enter_context(Resident(server, server.directory / "resident.log")) if resident else None
        stack.enter_context(loaded(server, rate=800))
        while killer.hits.total() < kills:
            killer.kill_one()
            if archiver:
                archiver.revive()
        stack.pop_all().close()
    drained(server)
    print(dict(killer.hits))
    stored = whole(server, shelf)
    assert len(stored) > 10
    wait_until(lambda: not killer.running("lzop", *COMMANDS), "the end of what was left")


@pytest.mark.parametrize(
    ("prefetch", "recoveries", "kills"), [(8, 1, 4), pytest.param(8, 12, 9, marks=pytest.mark.slow), pytest.param(0, 4, 8, marks=pytest.mark.slow)]
)
def test_what_is_killed_while_it_restores_stops_or_delays_the_recovery_and_no_more(make_server, make_place, moments, prefetch, recoveries, kills):
    server, shelf = archiving_server(make_server, file_shelf)
    server.start()
    server.pgbench("-i", "-q", "-s", "1")
    server.wal_e("backup-push", str(server.data), "--fast")
    with loaded(server, rate=800):
        time.sleep(4)
    drained(server)
    before = dump(server)
    server.wal_e("backup-fetch", str(server.directory / "backup"), "LATEST")
    hits: Counter[str] = Counter()
    kinds = ["wal-fetch", "lzop", *(["wal-prefetch"] if prefetch else [])]
    for _ in range(recoveries):
        place = make_place()
        place.run(["cp", "-a", server.directory / "backup", place.data])
        copy = make_server(data=place.data)
        copy.environ |= shelf.environ
        copy.configure(archive_mode="off", restore_command=f"wal-e wal-fetch %f %p -p {prefetch}")
        hits += recovered_under_fire(copy, Killer(copy, moments, kinds), kills)
        assert dump(copy) == before
        copy.end()
    print(dict(hits))
    assert recoveries == 1 or all(hits[kind] for kind in kinds), hits


def recovered_under_fire(server: Server, killer: Killer, kills: int) -> Counter[str]:
    """Kill so many processes while the server recovers, starting it again whenever it stopped; return what was hit."""
    (server.data / "recovery.signal").touch()
    give_to_server_user(server.data / "recovery.signal")
    server.start(wait=False)
    while "selected new timeline" not in server.log_text():
        if killer.hits.total() < kills:
            killer.kill_one(patience_s=0.5)
        if not server.is_running():
            server.start(wait=False)
        time.sleep(0.05)
    wait_until(lambda: "ready to accept connections" in server.log_text(), f"the end of the recovery\n{server.log_text()[-5000:]}")
    server.wait_for("select not pg_is_in_recovery()")
    return killer.hits
