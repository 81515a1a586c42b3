"""A full backup and its restore, beside tar | lzop and pgBackRest, and the memory they take.

    python bench/backup.py [--gib 1] [--rounds 3] [--pool-size 2]

A running server with a pgbench database, idle but for the checkpoint that each backup asks
for. wal-e and pgBackRest (lz4, as many processes as wal-e has lanes) each have a working
archive_command of their own; stores are directories on the same file system. Both make durable
what they store and what they restore; tar does not.

``--rounds 0`` measures memory only: the peak of wal-e's own process, and the largest sum that was
seen of it and its codecs, which counts shared pages twice.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from scratch import MIB, Cost, PgBackRest, Scratch, Server, WalE, compare, cost_of, median_cost, print_table, ratio, scratch

PUSH_PEER, FETCH_PEER = "pgbackrest backup", "pgbackrest restore"
SCALE_PER_GIB = 71.5  # a pgbench scale unit is about 15 MB of table and index
LISTS_PER_LANE = 8
POLL_S = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1, help="size of the cluster")
    parser.add_argument("--rounds", type=int, default=3, help="0: memory only")
    parser.add_argument("--pool-size", type=int, default=2, help="lanes of wal-e, processes of pgBackRest, tars at once")
    options = parser.parse_args()
    with scratch() as place:
        server = Server(place, archive_mode="on", archive_command="true")
        contest = Contest(place, server, options.pool_size)
        server.start()
        place.run("pgbench", "-i", "-q", "-s", str(round(options.gib * SCALE_PER_GIB)))
        place.run("pgbench", "-n", "-c", "2", "-t", "2000")
        server.sql("checkpoint")
        size_bytes = cluster_bytes(server.data)
        if options.rounds:
            pushes = compare(contest.pushes(), options.rounds)
            print_costs(f"Backup of {size_bytes / MIB:.0f} MiB, {options.pool_size} at once", pushes, PUSH_PEER, size_bytes, contest.stored_bytes)
            fetches = compare(contest.fetches(), options.rounds)
            print_costs(f"Restore of {size_bytes / MIB:.0f} MiB, {options.pool_size} at once", fetches, FETCH_PEER, size_bytes, {})
        rows = [memory_row(contest, pool_size) for pool_size in (2, 4)]
        print_table(f"Memory of wal-e for {size_bytes / MIB:.0f} MiB, in MiB", ["", "push", "with codecs", "fetch", "with codecs"], rows)


def cluster_bytes(data: Path) -> int:
    """Bytes in the files that a backup holds; WAL is not among them."""
    return sum(path.stat().st_size for path in cluster_files(data))


def cluster_files(data: Path) -> list[Path]:
    return [path for path in data.rglob("*") if path.is_file() and "pg_wal" not in path.parts and path.name != "postmaster.pid"]


def print_costs(title: str, costs: dict[str, list[Cost]], peer: str, size_bytes: int, stored_bytes: dict[str, int]) -> None:
    rows = []
    for name, one in costs.items():
        cost = median_cost(one)
        stored = f"{stored_bytes[name] / MIB:.0f}" if name in stored_bytes else ""
        rate = f"{size_bytes / MIB / cost.seconds:.0f}"
        rows.append([name, f"{cost.seconds:.2f}", f"{cost.cpu_seconds:.2f}", rate, stored, f"{ratio(one, costs[peer]):.2f}"])
    print_table(title, ["", "s", "CPU s", "MiB/s", "stored MiB", f"time / {peer}"], rows)


def memory_row(contest: Contest, pool_size: int) -> list[str]:
    push, fetch = Peak(), Peak()
    contest.wale_push(pool_size, push.watch)
    contest.wale_fetch(pool_size, fetch.watch)
    peaks = (push.own_bytes, push.sum_bytes, fetch.own_bytes, fetch.sum_bytes)
    return [f"--pool-size {pool_size}", *(f"{peak / MIB:.0f}" for peak in peaks)]


class Contest:
    """The ways to back up and to restore one cluster; ``stored_bytes`` is what each stored last."""

    def __init__(self, place: Scratch, server: Server, pool_size: int) -> None:
        self.place = place
        self.server = server
        self.pool_size = pool_size
        self.wale = WalE(place)
        self.pgbackrest = PgBackRest(place, server, pool_size)
        self.stored_bytes: dict[str, int] = {}

    def pushes(self) -> dict[str, Callable[[], Cost]]:
        return {"tar | lzop": self.tar_push, "wal-e backup-push": lambda: self.wale_push(self.pool_size), PUSH_PEER: self.pgbackrest_push}

    def fetches(self) -> dict[str, Callable[[], Cost]]:
        return {"lzop -d | tar": self.tar_fetch, "wal-e backup-fetch": lambda: self.wale_fetch(self.pool_size), FETCH_PEER: self.pgbackrest_fetch}

    def tar_push(self) -> Cost:
        """Tar the same files in lists of equal size, as many lists for each tar as wal-e makes partitions for each lane."""
        lists = balanced(cluster_files(self.server.data), self.pool_size * LISTS_PER_LANE)
        stored = self.place.empty_directory("tars")
        for number, files in enumerate(lists):
            (stored / f"{number}.list").write_text("".join(f"{path.relative_to(self.server.data)}\n" for path in files))
        cost = cost_of(lambda: self.in_parallel(f'tar -cf - -C {self.server.data} -T "$1.list" | lzop -c >"$1.tar.lzo"'))
        self.stored_bytes["tar | lzop"] = sum(path.stat().st_size for path in stored.glob("*.lzo"))
        return cost

    def tar_fetch(self) -> Cost:
        target = self.place.empty_directory("target")
        for path in self.server.data.rglob("*"):
            if path.is_dir():  # two tars at once must not both find that one is missing
                (target / path.relative_to(self.server.data)).mkdir(parents=True, exist_ok=True)
        return cost_of(lambda: self.in_parallel(f'lzop -dc <"$1.tar.lzo" | tar -xf - -C {target}'))

    def in_parallel(self, script: str) -> None:
        """Run a script for every list of files."""
        lists = self.place.root / "lists"
        lists.write_text("".join(f"{path.with_suffix('')}\n" for path in sorted((self.place.root / "tars").glob("*.list"))))
        self.place.run("xargs", f"-P{self.pool_size}", "-I{}", "sh", "-c", script, "sh", "{}", stdin=lists)

    def wale_push(self, pool_size: int, watch: Callable[[int], None] | None = None) -> Cost:
        self.wale.reset()
        self.server.archive_with(f"{self.wale.program} wal-push %p")
        cost = cost_of(lambda: self.place.run("wal-e", "backup-push", self.server.data, "--fast", "--pool-size", str(pool_size), watch=watch))
        self.stored_bytes["wal-e backup-push"] = tree_bytes(self.wale.store / "basebackups_005")
        return cost

    def wale_fetch(self, pool_size: int, watch: Callable[[int], None] | None = None) -> Cost:
        target = self.place.empty_directory("target")
        return cost_of(lambda: self.place.run("wal-e", "backup-fetch", target, "LATEST", "--pool-size", str(pool_size), watch=watch))

    def pgbackrest_push(self) -> Cost:
        self.pgbackrest.reset()
        self.server.archive_with(" ".join((*self.pgbackrest.argv, "archive-push", "%p")))
        cost = cost_of(lambda: self.place.run(*self.pgbackrest.argv, "--type=full", "backup"))
        self.stored_bytes[PUSH_PEER] = tree_bytes(self.pgbackrest.repository / "backup")
        return cost

    def pgbackrest_fetch(self) -> Cost:
        target = self.place.empty_directory("target")
        return cost_of(lambda: self.place.run(*self.pgbackrest.argv, f"--pg1-path={target}", "restore"))


def balanced(files: list[Path], count: int) -> list[list[Path]]:
    """Deal files out to lists, the largest first, each to the list that holds least."""
    lists: list[list[Path]] = [[] for _ in range(count)]
    held_bytes = [0] * count
    for size, path in sorted(((path.stat().st_size, path) for path in files), reverse=True):
        least = held_bytes.index(min(held_bytes))
        lists[least].append(path)
        held_bytes[least] += size
    return lists


def tree_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


class Peak:
    """The largest resident size of a process, and of it and its codecs together, in bytes."""

    def __init__(self) -> None:
        self.own_bytes = 0
        self.sum_bytes = 0

    def watch(self, pid: int) -> None:
        """Look often until the process has ended."""
        while own_bytes := status_bytes(pid, "VmHWM"):
            self.own_bytes = own_bytes
            self.sum_bytes = max(self.sum_bytes, status_bytes(pid, "VmRSS") + sum(status_bytes(codec, "VmRSS") for codec in codecs(pid)))
            time.sleep(POLL_S)


def codecs(pid: int) -> list[int]:
    """The children that run another program; one that was started this moment still shares its parent's memory."""
    try:
        children = {int(child) for thread in Path(f"/proc/{pid}/task").iterdir() for child in (thread / "children").read_text().split()}
        own = Path(f"/proc/{pid}/exe").readlink()
        return [child for child in children if Path(f"/proc/{child}/exe").readlink() != own]
    except (FileNotFoundError, ProcessLookupError):
        return []


def status_bytes(pid: int, field: str) -> int:
    """A field of /proc/PID/status; 0 once the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
