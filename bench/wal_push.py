"""What it costs to archive a WAL segment, and to fetch one, beside lzop alone and pgBackRest.

    python bench/wal_push.py [--segments 24] [--rounds 3]

Real segments of 16 MiB, made by pgbench on a scratch server that is then stopped; stores and
repositories are directories on the same file system. Each contestant pushes all of them in
every round, then fetches them: in-band, a transfer per call; or prefetched, where only the
calls are measured and the background process is waited for. Processor time of a batch
includes its background processes; that of prefetched segments does not.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from scratch import Cost, PgBackRest, Scratch, Server, WalE, compare, cost_of, median_cost, print_table, ratio, scratch

PUSH_PEER, FETCH_PEER = "pgbackrest archive-push", "pgbackrest archive-get"
AHEAD = 8  # segments that both prefetch by default: wal-e's --prefetch, and 128 MiB of archive-get-queue-max

Command = Callable[[Path], tuple[str | Path, ...]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=24, help=f"segments to push and fetch, more than {AHEAD + 2}")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.segments <= AHEAD + 2:
        parser.error(f"--segments must be more than {AHEAD + 2}")
    with scratch() as place:
        server = Server(place, wal_keep_size="16GB", wal_recycle="off")
        segments = make_segments(server, place, options.segments)
        pushes = Pushes(place, server, segments)
        costs = compare(pushes.contestants(), options.rounds)
        print_costs(f"Push of {len(segments)} segments of 16 MiB, one of them", costs, PUSH_PEER)
        costs = compare(Fetches(pushes, segments).contestants(), options.rounds)
        print_costs("Fetch of a segment", costs, FETCH_PEER)


def make_segments(server: Server, place: Scratch, count: int) -> list[Path]:
    """Fill ``count`` segments with what pgbench's own load writes, then stop the server; return their paths."""
    server.start()
    place.run("pgbench", "-i", "-q", "-s", "10")
    first = server.sql("select pg_switch_wal(); checkpoint; select pg_walfile_name(pg_current_wal_insert_lsn())").splitlines()[-1]
    while len(segments := server.sql(f"select name from pg_ls_waldir() where name ~ '^[0-9A-F]{{24}}$' and name > '{first}' order by 1").split()) <= count:
        place.run("pgbench", "-n", "-c", "2", "-t", "2000")
        server.sql("checkpoint")
    server.stop()
    return [server.data / "pg_wal" / name for name in segments[:count]]


def print_costs(title: str, costs: dict[str, list[Cost]], peer: str) -> None:
    rows = []
    for name, one in costs.items():
        cost = median_cost(one)
        rows.append([name, f"{cost.seconds * 1000:.1f}", f"{cost.cpu_seconds * 1000:.1f}", f"{1 / cost.seconds:.1f}", f"{ratio(one, costs[peer]):.2f}"])
    print_table(title, ["", "ms", "CPU ms", "segments/s", f"time / {peer}"], rows)


class Pushes:
    """The ways to push; each empties its store, pushes all segments, and returns the cost of one."""

    def __init__(self, place: Scratch, server: Server, segments: list[Path]) -> None:
        self.place = place
        self.segments = segments
        self.wale = WalE(place)
        self.pgbackrest = PgBackRest(place, server)
        self.status = server.data / "pg_wal" / "archive_status"

    def contestants(self) -> dict[str, Callable[[], Cost]]:
        return {
            "python -c pass": lambda: self.cost(lambda: self.one_by_one(lambda _: (sys.executable, "-c", "pass"))),
            "lzop": self.lzop,
            "lzop, 2 at once": self.lzop_twice,
            "wal-e wal-push": self.wale_one_by_one,
            "wal-e wal-push, neighbours": self.wale_with_neighbours,
            PUSH_PEER: self.pgbackrest_one_by_one,
            f"{PUSH_PEER}, async": self.pgbackrest_async,
        }

    def lzop(self) -> Cost:
        coded = self.place.empty_directory("coded")

        def push_all() -> None:
            for segment in self.segments:
                self.place.run("lzop", "-c", stdin=segment, stdout=coded / segment.name)

        return self.cost(push_all)

    def lzop_twice(self) -> Cost:
        coded = self.place.empty_directory("coded")
        names = self.place.root / "names"
        names.write_text("".join(f"{segment}\n" for segment in self.segments))
        return self.cost(lambda: self.place.run("xargs", "-P2", "-I{}", "sh", "-c", f'lzop -c <"$1" >{coded}/"$(basename "$1")"', "sh", "{}", stdin=names))

    def wale_one_by_one(self) -> Cost:
        self.wale.reset()
        return self.cost(lambda: self.one_by_one(lambda segment: ("wal-e", "wal-push", segment, "--pool-size", "1")))

    def wale_with_neighbours(self) -> Cost:
        self.wale.reset()
        return self.cost(lambda: self.as_the_archiver(lambda segment: ("wal-e", "wal-push", segment)))

    def pgbackrest_one_by_one(self) -> Cost:
        self.pgbackrest.reset()
        return self.cost(lambda: self.one_by_one(lambda segment: (*self.pgbackrest.argv, "archive-push", segment)))

    def pgbackrest_async(self) -> Cost:
        self.pgbackrest.reset()
        return self.cost(lambda: self.as_the_archiver(lambda segment: (*self.pgbackrest.argv, "--archive-async", "archive-push", segment)))

    def one_by_one(self, command: Command) -> None:
        for segment in self.segments:
            self.place.run(*command(segment))

    def as_the_archiver(self, command: Command) -> None:
        """Mark all segments ready, then do what the server does until none is: push the first, mark it done."""
        for segment in self.segments:
            (self.status / f"{segment.name}.done").unlink(missing_ok=True)
            (self.status / f"{segment.name}.ready").touch()
        for segment in self.segments:
            ready = self.status / f"{segment.name}.ready"
            if ready.exists():
                self.place.run(*command(segment))
                ready.replace(ready.with_suffix(".done"))

    def cost(self, push_all: Callable[[], None]) -> Cost:
        """The cost of one segment, processes in the background included in the processor time."""
        return per_segment(cost_of(push_all, settle=self.place.wait_for_background), len(self.segments))


class Fetches:
    """The ways to fetch what was pushed, as a recovering server does; each returns the cost of one segment."""

    def __init__(self, pushes: Pushes, segments: list[Path]) -> None:
        self.place = pushes.place
        self.segments = segments
        self.coded = self.place.root / "coded"
        self.pgbackrest = pushes.pgbackrest
        self.pg_wal = segments[0].parent
        self.destination = self.pg_wal / "RECOVERYXLOG"

    def contestants(self) -> dict[str, Callable[[], Cost]]:
        return {
            "lzop -d": self.lzop,
            "wal-e wal-fetch": self.wale_in_band,
            "wal-e wal-fetch, prefetched": self.wale_prefetched,
            FETCH_PEER: self.pgbackrest_in_band,
            f"{FETCH_PEER}, prefetched": self.pgbackrest_prefetched,
        }

    def lzop(self) -> Cost:
        return self.in_band(lambda segment: self.place.run("lzop", "-d", "-c", stdin=self.coded / segment.name, stdout=self.destination))

    def wale_in_band(self) -> Cost:
        return self.in_band(lambda segment: self.place.run("wal-e", "wal-fetch", segment.name, self.destination, "--prefetch", "0"))

    def wale_prefetched(self) -> Cost:
        return self.prefetched(self.pg_wal / ".wal-e" / "prefetch", lambda segment: ("wal-e", "wal-fetch", segment.name, self.destination))

    def pgbackrest_in_band(self) -> Cost:
        return self.in_band(lambda segment: self.place.run(*self.pgbackrest.argv, "archive-get", segment.name, self.destination))

    def pgbackrest_prefetched(self) -> Cost:
        ready = self.pgbackrest.spool / "archive" / "main" / "in"
        return self.prefetched(ready, lambda segment: (*self.pgbackrest.argv, "--archive-async", "archive-get", segment.name, self.destination))

    def in_band(self, fetch: Callable[[Path], None]) -> Cost:
        def fetch_all() -> None:
            for segment in self.segments:
                fetch(segment)

        return per_segment(cost_of(fetch_all), len(self.segments))

    def prefetched(self, ready: Path, command: Command) -> Cost:
        """Fetch the first in-band, then measure each of those that still have prefetched ones behind them."""
        self.place.run(*command(self.segments[0]))
        costs = []
        for number, segment in enumerate(self.segments[1:-AHEAD], 1):
            wait_for([ready / later.name for later in self.segments[number : number + 3]])
            costs.append(cost_of(partial(self.place.run, *command(segment))))
        self.place.end_background()
        shutil.rmtree(ready)
        return per_segment(Cost(*map(sum, zip(*costs, strict=True))), len(costs))


def per_segment(total: Cost, segments: int) -> Cost:
    return Cost(total.seconds / segments, total.cpu_seconds / segments)


def wait_for(paths: list[Path]) -> None:
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        if time.monotonic() > deadline:
            sys.exit(f"nobody prefetches {paths[0]}")
        time.sleep(0.01)


if __name__ == "__main__":
    main()
