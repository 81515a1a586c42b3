"""A full and a delta restore, beside pgBackRest.

    python bench/restore.py [--gib 2] [--rounds 3] [--pool-size 2] [--changed 5]

One cluster with a pgbench database is backed up once by each, and restored from there: into an
empty directory, over an unchanged copy, and over a copy in which some of the files were damaged
(``--changed``, in percent of its bytes, size and times kept). Reading the copy is in the table as what any
comparison by content costs at least: once, by as many readers, and twice, by one ``cat``. The copy was written
just before, so it is in memory as far as that goes, for all alike. Stores are directories on the same file system;
both make durable what they restore.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from backup import SCALE_PER_GIB, cluster_bytes, cluster_files, print_costs
from scratch import MIB, Cost, PgBackRest, Scratch, Server, WalE, compare, cost_of, ratio, scratch

PEER = "pgbackrest restore"
READ_TWICE = "cat twice, one at a time"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2, help="size of the cluster")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pool-size", type=int, default=2, help="lanes of wal-e, processes of pgBackRest, readers at once")
    parser.add_argument("--changed", type=float, default=5, help="percent of the bytes that are in damaged files")
    options = parser.parse_args()
    with scratch() as place:
        server = Server(place, archive_mode="on", archive_command="true")
        contest = Contest(place, server, options.pool_size, options.changed / 100)
        server.start()
        place.run("pgbench", "-i", "-q", "-s", str(round(options.gib * SCALE_PER_GIB)))
        contest.back_up()
        server.stop()
        size_bytes = cluster_bytes(contest.target())
        size = f"{size_bytes / MIB:.0f} MiB, {options.pool_size} at once"
        print_costs(f"Restore of {size}", compare(contest.full(), options.rounds), PEER, size_bytes, {})
        unchanged = compare(contest.unchanged(), options.rounds)
        print_costs(f"Restore over an unchanged copy of {size}", unchanged, f"{PEER} --delta", size_bytes, {})
        share = ratio(unchanged["wal-e restore --delta"], unchanged[READ_TWICE])
        print(f"\nwal-e takes {share:.2f} of the time it takes to read the copy twice, one file at a time.")
        damaged = compare(contest.damaged(), options.rounds)
        print_costs(f"Restore over a copy with {options.changed:g}% damaged, of {size}", damaged, f"{PEER} --delta", size_bytes, {})


class Contest:
    """The ways to restore one cluster into one directory."""

    def __init__(self, place: Scratch, server: Server, pool_size: int, changed: float) -> None:
        self.place = place
        self.server = server
        self.pool_size = str(pool_size)
        self.changed = changed
        self.wale = WalE(place)
        self.pgbackrest = PgBackRest(place, server, pool_size)

    def back_up(self) -> None:
        """Let each store one backup, and the WAL that it needs."""
        self.wale.reset()
        self.server.archive_with(f"{self.wale.program} wal-push %p")
        self.place.run("wal-e", "backup-push", self.server.data, "--fast", "--pool-size", self.pool_size)
        self.server.sql("select pg_switch_wal()")
        self.pgbackrest.reset()
        self.server.archive_with(" ".join((*self.pgbackrest.argv, "archive-push", "%p")))
        self.place.run(*self.pgbackrest.argv, "--type=full", "backup")

    def full(self) -> dict[str, Callable[[], Cost]]:
        return {"wal-e restore": lambda: self.empty(self.wale_restore), PEER: lambda: self.empty(self.pgbackrest_restore)}

    def unchanged(self) -> dict[str, Callable[[], Cost]]:
        return {
            READ_TWICE: lambda: self.copied(None, self.read_twice),
            f"cat once, {self.pool_size} at once": lambda: self.copied(None, self.read),
            "wal-e restore --delta": lambda: self.copied(self.wale_restore, self.wale_delta),
            f"{PEER} --delta": lambda: self.copied(self.pgbackrest_restore, self.pgbackrest_delta),
        }

    def damaged(self) -> dict[str, Callable[[], Cost]]:
        return {
            "wal-e restore --delta": lambda: self.copied(self.wale_restore, self.wale_delta, self.damage),
            f"{PEER} --delta": lambda: self.copied(self.pgbackrest_restore, self.pgbackrest_delta, self.damage),
        }

    def empty(self, restore: Callable[[Path], None]) -> Cost:
        target = self.place.empty_directory("target")
        return cost_of(lambda: restore(target))

    def copied(self, restore: Callable[[Path], None] | None, again: Callable[[Path], None], spoil: Callable[[Path], None] | None = None) -> Cost:
        """Measure a second restore, over what the same program restored before; a reader reads what is there."""
        if restore:
            self.empty(restore)
        target = self.target()
        if spoil:
            spoil(target)
        return cost_of(lambda: again(target))

    def target(self) -> Path:
        """The directory, restored if it never was."""
        target = self.place.root / "target"
        if not (target / "PG_VERSION").exists():
            self.empty(self.wale_restore)
        return target

    def damage(self, target: Path) -> None:
        """Change a byte in the middle of files that hold enough of the bytes."""
        left = cluster_bytes(target) * self.changed
        for path in sorted((path for path in cluster_files(target) if path.parent.parent.name == "base"), key=lambda path: (path.stat().st_size, path.name)):
            status = path.stat()
            if status.st_size and left > 0:
                with path.open("r+b") as stream:
                    stream.seek(status.st_size // 2)
                    stream.write(bytes([path.read_bytes()[status.st_size // 2] ^ 1]))
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
                left -= status.st_size

    def read(self, target: Path) -> None:
        self.place.run("sh", "-c", f"find {target} -type f -print0 | xargs -0 -n 16 -P {self.pool_size} cat >/dev/null")

    def read_twice(self, target: Path) -> None:
        self.place.run("sh", "-c", f"for time in first second; do find {target} -type f -print0 | xargs -0 cat >/dev/null; done")

    def wale_restore(self, target: Path) -> None:
        self.place.run("wal-e", "restore", target, "--pool-size", self.pool_size)

    def wale_delta(self, target: Path) -> None:
        self.place.run("wal-e", "restore", target, "--delta", "--pool-size", self.pool_size)

    def pgbackrest_restore(self, target: Path) -> None:
        self.place.run(*self.pgbackrest.argv, f"--pg1-path={target}", "restore")

    def pgbackrest_delta(self, target: Path) -> None:
        self.place.run(*self.pgbackrest.argv, f"--pg1-path={target}", "--delta", "restore")


if __name__ == "__main__":
    main()
