"""WAL as PostgreSQL's archiver pushes it and a recovering server fetches it: wal-e beside its peers and the bare limit.

    python bench/wal.py [--segments 256] [--stores file[,s3]] [--rounds 1] [--original PROGRAM]

Real segments of 16 MiB, made by pgbench on a scratch server that is then stopped. A push plays the archiver: all
segments are ready, each that still is gets one call, in order, and is renamed to .done. A fetch asks for one segment
after the other, as recovery does, with each contestant's own prefetching. The limit is lzop alone on two files at once.
Stores are directories, or versitygw with TLS, which script/test installs. The original WAL-E (--original) and WAL-G, if it is
on PATH, take part. Processor time is of all processes but servers; "beyond" is what is left without lzop's.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from scratch import Cost, Scratch, Server, compare, cost_of, median_cost, print_table, ratio, scratch
from wal_peers import Contestant, contestants, s3_store

LIMIT, PEER = "lzop, 2 at once", "pgbackrest, async"
HANDSHAKES = 100


class Trial(NamedTuple):
    """Segments in a data directory whose server is stopped, and an empty one that fetches."""

    place: Scratch
    data: Path
    target: Path
    names: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=256)
    parser.add_argument(
        "--stores", default="file,s3" if os.environ.get("WALE_TEST_SERVERS") else "file", help="s3 needs WALE_TEST_SERVERS, where script/test installs"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--original", metavar="PROGRAM", help="the wal-e script of an installed WAL-E 1.1.1")
    options = parser.parse_args()
    with scratch() as place:
        server = Server(place, wal_keep_size="64GB", wal_recycle="off", max_wal_size="16GB")
        names = make_segments(server, place, options.segments)
        trial = Trial(place, server.data, make_target(place, server.data), names)
        for store in options.stores.split(","):
            with s3_store(place) if store == "s3" else contextlib.nullcontext() as endpoint:
                rivals = contestants(place, server, endpoint, options.original)
                pushes = {LIMIT: lambda: limit(trial), **{one.name: partial(push, trial, one) for one in rivals}}
                print_costs(f"Push of {len(names)} segments of 16 MiB, {store}", trial, compare(pushes, options.rounds))
                fetches = {LIMIT: lambda: limit_back(trial), **{one.name: partial(fetch, trial, one) for one in rivals if one.fetch}}
                print_costs(f"Fetch of {len(names)} segments of 16 MiB, one after the other, {store}", trial, compare(fetches, options.rounds))
                print_handshake(trial, next(one for one in rivals if one.resident))


def make_segments(server: Server, place: Scratch, count: int) -> list[str]:
    """Fill ``count`` segments with what pgbench's own load writes, then stop the server; return their names."""
    server.start()
    place.run("pgbench", "-i", "-q", "-s", "10")
    first = server.sql("select pg_switch_wal(); checkpoint; select pg_walfile_name(pg_current_wal_insert_lsn())").splitlines()[-1]
    wanted = f"select name from pg_ls_waldir() where name ~ '^[0-9A-F]{{24}}$' and name > '{first}' order by 1"
    while len(names := server.sql(wanted).split()) <= count:
        place.run("pgbench", "-n", "-c", "4", "-t", "2000")
        server.sql("checkpoint")
    server.stop()
    return names[:count]


def make_target(place: Scratch, data: Path) -> Path:
    """A data directory as a restore leaves it, as far as a fetch looks at it."""
    target = place.empty_directory("target")
    for name in ("global", "pg_wal"):
        (target / name).mkdir(mode=0o700)
    shutil.copy(data / "global/pg_control", target / "global/pg_control")
    return target


def limit(trial: Trial) -> Cost:
    coded = trial.place.empty_directory("coded")
    return cost_of(lambda: lzop_twice(trial, f'lzop -c <"{trial.data}/pg_wal/$1" >"{coded}/$1"'))


def limit_back(trial: Trial) -> Cost:
    coded = trial.place.root / "coded"
    return cost_of(lambda: lzop_twice(trial, f'lzop -dc <"{coded}/$1" >"{trial.target}/pg_wal/$1"; rm "{trial.target}/pg_wal/$1"'))


def lzop_twice(trial: Trial, command: str) -> None:
    names = trial.place.root / "names"
    names.write_text("".join(f"{name}\n" for name in trial.names))
    trial.place.run("xargs", "-P2", "-I{}", "sh", "-c", command, "sh", "{}", stdin=names)


def push(trial: Trial, contestant: Contestant) -> Cost:
    """Play the archiver over all segments, from an empty store."""
    contestant.reset()
    with residing(trial, contestant) as settle:
        return cost_of(lambda: archive(trial, contestant), settle)


def archive(trial: Trial, contestant: Contestant) -> None:
    status = trial.data / "pg_wal/archive_status"
    for name in trial.names:
        (status / f"{name}.done").unlink(missing_ok=True)
        (status / f"{name}.ready").touch()
    for name in trial.names:
        ready = status / f"{name}.ready"
        if ready.exists():
            trial.place.run(*contestant.push(f"pg_wal/{name}"), cwd=trial.data, environ=contestant.environ)
            with contextlib.suppress(FileNotFoundError):
                ready.replace(ready.with_suffix(".done"))


@contextlib.contextmanager
def residing(trial: Trial, contestant: Contestant) -> Iterator[Callable[[], None]]:
    """Run the contestant's resident process, if it has one; give what waits for the end of all that runs in the background."""
    if not contestant.resident:
        yield trial.place.wait_for_background
        return
    with trial.place.started(*contestant.resident, cwd=trial.data, environ=contestant.environ) as process:
        deadline = time.monotonic() + 30
        while not (trial.data / "pg_wal/.wal-e/archiver.sock").is_socket():
            if time.monotonic() > deadline or process.poll() is not None:
                sys.exit("the resident archiver does not start")
            time.sleep(0.05)

        def settle() -> None:
            process.terminate()
            process.wait()

        yield settle


def fetch(trial: Trial, contestant: Contestant) -> Cost:
    """Fetch all segments that were pushed, in order, as recovery asks for them."""
    destination = trial.target / "pg_wal/RECOVERYXLOG"

    def fetch_all() -> None:
        for name in trial.names:
            assert contestant.fetch
            trial.place.run(*contestant.fetch(name, "pg_wal/RECOVERYXLOG"), cwd=trial.target, environ=contestant.environ)
            install(destination, destination.with_name(name))

    cost = cost_of(fetch_all, trial.place.end_background)
    shutil.rmtree(trial.target / "pg_wal/.wal-e", ignore_errors=True)
    return cost


def install(fetched: Path, segment: Path) -> None:
    """Take a fetched segment as the server does: flush it, give it its name for good. That it is replayed and removed is not played."""
    for path in (fetched, fetched.parent):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    fetched.rename(segment)
    if segment.stat().st_size != 16 << 20:
        sys.exit(f"{segment.name} was not fetched whole")
    segment.unlink()


def print_costs(title: str, trial: Trial, costs: dict[str, list[Cost]]) -> None:
    count, codec = len(trial.names), median_cost(costs[LIMIT]).cpu_seconds
    rows = []
    for name, one in costs.items():
        cost = median_cost(one)
        figures = [count / cost.seconds, 1000 * cost.cpu_seconds / count, 1000 * (cost.cpu_seconds - codec) / count]
        speeds = [1 / ratio(one, costs[other]) if other in costs else float("nan") for other in (LIMIT, PEER)]
        rows.append([name, *(f"{figure:.1f}" for figure in figures), *(f"{speed:.2f}" for speed in speeds)])
    print_table(title, ["", "segments/s", "CPU ms each", "beyond", "speed / limit", f"speed / {PEER}"], rows)


def print_handshake(trial: Trial, contestant: Contestant) -> None:
    """Time a call for a segment that the resident archiver has stored, beside a bare interpreter."""
    contestant.reset()
    seconds: dict[str, list[float]] = {"hand-shake": [], "python -c pass": []}
    with residing(trial, contestant):
        archive(Trial(*trial[:3], trial.names[:1]), contestant)
        calls = {"hand-shake": contestant.push(f"pg_wal/{trial.names[0]}"), "python -c pass": (sys.executable, "-c", "pass")}
        for _ in range(HANDSHAKES):
            for name, argv in calls.items():
                before = time.perf_counter()
                trial.place.run(*argv, cwd=trial.data, environ=contestant.environ)
                seconds[name].append(time.perf_counter() - before)
    ours, bare = (1000 * median(seconds[name]) for name in seconds)
    print(f"\nwal-push of a segment that is stored, median of {HANDSHAKES}: {ours:.1f} ms, {ours / bare:.2f} of a bare interpreter's {bare:.1f} ms")


if __name__ == "__main__":
    main()
