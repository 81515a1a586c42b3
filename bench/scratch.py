"""What the comparisons share: a scratch directory, a server in it, the two archives, costs and tables.

A comparison runs as an unprivileged user, since PostgreSQL refuses to run as root. Whatever it
starts and writes belongs to one directory under TMPDIR and is gone at its end, also after Ctrl-C.
Seconds say little about another machine. Ratios to a peer say more: all contestants run in every
round, in reversed order every other round, and a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import pwd
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

MIB = 1024 * 1024

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2): orphans of our children become ours, to be measured and ended
_ENDING_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_FOREIGN_VARIABLES = ("PG", "WALE_")


class Cost(NamedTuple):
    """Elapsed time, and processor time of the processes that were started for it and have ended."""

    seconds: float
    cpu_seconds: float


def cost_of(work: Callable[[], None], settle: Callable[[], None] | None = None) -> Cost:
    """Measure a call that runs programs, once everything written before is on the disk.

    ``settle`` is called when the clock has stopped; what it waits for counts as processor time only.
    """
    os.sync()
    cpu_before, before = _cpu_seconds(), time.perf_counter()
    work()
    seconds = time.perf_counter() - before
    if settle:
        settle()
    return Cost(seconds, _cpu_seconds() - cpu_before)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def compare(contestants: dict[str, Callable[[], Cost]], rounds: int) -> dict[str, list[Cost]]:
    """Run every contestant in every round; return their costs by round."""
    costs: dict[str, list[Cost]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in reversed(contestants) if number % 2 else contestants:
            costs[name].append(contestants[name]())
            print(f"round {number + 1}/{rounds}: {name}: {costs[name][-1].seconds:.3f} s", file=sys.stderr)
    return costs


def median_cost(costs: Sequence[Cost]) -> Cost:
    """The medians of both figures."""
    return Cost(median(cost.seconds for cost in costs), median(cost.cpu_seconds for cost in costs))


def ratio(costs: Sequence[Cost], peer: Sequence[Cost]) -> float:
    """The median of the rounds' ratios of elapsed time; below 1 is faster than the peer."""
    return median(cost.seconds / other.seconds for cost, other in zip(costs, peer, strict=True))


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with its first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(f"\n{title}\n")
    for row in (header, ["-" * width for width in widths], *rows):
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *rest]))
    sys.stdout.flush()


class Scratch:
    """A directory of our own, and the programs that run in it; ``environ`` is theirs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.server_pids: set[int] = set()
        own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN_VARIABLES)}
        path = os.pathsep.join([str(Path(sys.executable).parent), str(_postgres_programs()), os.environ["PATH"]])
        self.environ = {**own, "PATH": path, "HOME": str(root), "LANG": "C.UTF-8", "TZ": "UTC"}

    def empty_directory(self, name: str) -> Path:
        """Make a directory, or make it empty."""
        path = self.root / name
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(mode=0o700, parents=True)
        return path

    def run(
        self,
        *argv: str | Path,
        stdin: Path = Path(os.devnull),
        stdout: Path = Path(os.devnull),
        cwd: Path | None = None,
        environ: dict[str, str] | None = None,
        watch: Callable[[int], None] | None = None,
    ) -> None:
        """Run a program to its end, which must be a good one; ``watch`` is called with its process id meanwhile."""
        with stdin.open("rb") as source, stdout.open("wb") as sink, tempfile.TemporaryFile() as errors:
            environ = {**self.environ, **(environ or {})}
            process = subprocess.Popen(argv, stdin=source, stdout=sink, stderr=errors, cwd=cwd or self.root, env=environ, process_group=0)
            try:
                if watch:
                    watch(process.pid)
                status = process.wait()
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
            if status != 0:
                errors.seek(0)
                sys.exit(f"{shlex.join(map(str, argv))} ended with {status}:\n{errors.read().decode(errors='replace')}")

    @contextlib.contextmanager
    def started(self, *argv: str | Path, cwd: Path, environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        """Run a program beside the block, and end it afterwards; its messages are in a file named after it."""
        with (self.root / "started.log").open("ab") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd, env={**self.environ, **environ}, process_group=0)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()

    def output(self, *argv: str | Path) -> str:
        """Run a program and return what it says on stdout."""
        answer = self.root / "answer"
        self.run(*argv, stdout=answer)
        return answer.read_text().strip()

    def background(self) -> set[int]:
        """Process ids of what programs left running, servers excepted."""
        return _children() - self.server_pids

    def wait_for_background(self) -> None:
        """Wait until everything that programs left running has ended."""
        while background := self.background():
            for pid in background:
                os.waitpid(pid, 0)

    def end_background(self) -> None:
        """End everything that programs left running."""
        while background := self.background():
            for pid in background:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def end(self) -> None:
        """End what still runs, and remove the directory."""
        for pid in self.server_pids & _children():
            os.kill(pid, signal.SIGQUIT)  # a server's immediate shutdown
        self.end_background()
        for pid in self.server_pids & _children():
            os.waitpid(pid, 0)
        shutil.rmtree(self.root)


@contextlib.contextmanager
def scratch() -> Iterator[Scratch]:
    """Become an unprivileged user and make a scratch directory; end and remove everything afterwards."""
    for program in ("lzop", "pgbackrest"):
        if not shutil.which(program):
            sys.exit(f"this comparison needs {program}: apt-get install {program}")
    if not Path(sys.executable).with_name("wal-e").exists():
        sys.exit(f"wal-e is not installed beside {sys.executable}: {sys.executable} -m pip install .")
    _drop_privileges()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in _ENDING_SIGNALS:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    made = Scratch(Path(tempfile.mkdtemp(prefix="wal-e-bench-")))
    try:
        _print_versions(made)
        yield made
    finally:
        for number in _ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        made.end()


class Server:
    """A PostgreSQL server on a socket in the scratch directory. What it holds can be made again: it never waits for the disk."""

    def __init__(self, scratch: Scratch, **settings: str) -> None:
        self._scratch = scratch
        self.data = scratch.root / "data"
        self.libpq = {"PGHOST": str(scratch.root), "PGPORT": "5432", "PGUSER": "postgres", "PGDATABASE": "postgres"}
        scratch.environ.update(self.libpq)
        scratch.run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        fixed = {"listen_addresses": "", "unix_socket_directories": str(scratch.root), "port": "5432", "fsync": "off", "max_wal_size": "4GB"}
        with (self.data / "postgresql.conf").open("a") as stream:
            stream.writelines(f"{name} = '{value}'\n" for name, value in {**fixed, **settings}.items())

    def start(self) -> None:
        """Start, and be ready to answer."""
        self._scratch.run("pg_ctl", "-D", self.data, "-w", "-t", "60", "-l", self._scratch.root / "server.log", "start")
        self._scratch.server_pids.add(int((self.data / "postmaster.pid").read_text().split()[0]))

    def stop(self) -> None:
        """Shut down cleanly."""
        self._scratch.run("pg_ctl", "-D", self.data, "-w", "-t", "600", "-m", "fast", "stop")
        for pid in self._scratch.server_pids:
            os.waitpid(pid, 0)
        self._scratch.server_pids.clear()

    def sql(self, text: str) -> str:
        """Run one statement and return what it answers, unaligned."""
        return self._scratch.output("psql", "-X", "-A", "-t", "-c", text)

    def archive_with(self, command: str) -> None:
        """Change ``archive_command``, and wait until a segment went through it."""
        self.sql(f"alter system set archive_command = $_${command}$_$")
        self.sql("select pg_reload_conf()")
        segment = self.sql("select pg_walfile_name(pg_logical_emit_message(true, '', ''))")
        self.sql("select pg_switch_wal()")
        deadline = time.monotonic() + 60
        while self.sql("select last_archived_wal from pg_stat_archiver") < segment:
            if time.monotonic() > deadline:
                sys.exit(f"nothing is archived by {command}:\n{(self._scratch.root / 'server.log').read_text()[-4000:]}")
            time.sleep(0.05)


class WalE:
    """wal-e on a file store in the scratch directory."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self.program = Path(sys.executable).with_name("wal-e")
        scratch.environ["WALE_FILE_PREFIX"] = f"file://localhost{scratch.root}/store"

    def reset(self) -> None:
        """Begin with an empty store."""
        self.store = self._scratch.empty_directory("store")


class PgBackRest:
    """pgBackRest on a local repository in the scratch directory: lz4, and an immediate checkpoint."""

    def __init__(self, scratch: Scratch, server: Server, processes: int = 2, repository: dict[str, str] | None = None) -> None:
        self._scratch = scratch
        self.configuration = scratch.root / "pgbackrest.conf"
        self.spool = scratch.root / "spool"
        self.argv = ("pgbackrest", f"--config={self.configuration}", "--stanza=main")
        paths = {"repo1-path": "repository", "spool-path": "spool", "lock-path": "lock", "log-path": "log"}
        options = {name: str(scratch.root / directory) for name, directory in paths.items()}
        options |= {"log-level-file": "off", "compress-type": "lz4", "process-max": str(processes), "start-fast": "y"}
        options |= repository or {}
        stanza = {"pg1-path": str(server.data), "pg1-socket-path": str(scratch.root), "pg1-port": "5432", "pg1-user": "postgres"}
        sections = {"global": options, "main": stanza}
        lines = [line for title, rows in sections.items() for line in (f"[{title}]", *(f"{name}={value}" for name, value in rows.items()))]
        self.configuration.write_text("\n".join(lines) + "\n")

    def reset(self) -> None:
        """Begin with an empty repository and an empty spool."""
        for name in ("repository", "spool", "lock", "log"):
            self._scratch.empty_directory(name)
        self._scratch.run(*self.argv, "--no-online", "stanza-create")
        self.repository = self._scratch.root / "repository"


def _print_versions(scratch: Scratch) -> None:
    lzop = scratch.output("lzop", "--version").splitlines()[0]
    versions = [f"wal-e {scratch.output('wal-e', 'version')}", scratch.output("pgbackrest", "version"), scratch.output("postgres", "--version"), lzop]
    print(", ".join([*versions, f"Python {platform.python_version()}", f"{os.cpu_count()} cores"]))


def _postgres_programs() -> Path:
    """The directory of the newest PostgreSQL of Debian's packages, else of the one on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if not found and not on_path:
        sys.exit("this comparison needs PostgreSQL: apt-get install postgresql")
    return found[-1].parent if found else Path(str(on_path)).parent


def _drop_privileges() -> None:
    if os.geteuid() == 0:
        names = {entry.pw_name: entry for entry in pwd.getpwall()}
        user = names.get("postgres") or names["nobody"]
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)


def _children() -> set[int]:
    return {int(pid) for thread in Path("/proc/self/task").iterdir() for pid in (thread / "children").read_text().split()}
