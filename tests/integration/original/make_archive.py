#!/usr/bin/env python3
"""Make an archive with the original WAL-E 1.1.1: a base backup of PostgreSQL 14 with a tablespace, and the WAL around it.

    make_archive.py DIRECTORY --postgres BINDIR --wal-e PROGRAM

DIRECTORY must be new. Afterwards it holds ``archive/``, the store; ``facts.json``, what the server said
about its content at the end of the WAL; and ``archive.tar.xz``, both of these packed. The server is
gone, its data directory stays. ``psql``, ``lzop`` and ``pv`` must be on PATH; ``WALE_GPG_KEY_ID`` in
the environment makes an encrypted archive. Not to be run as root, which PostgreSQL refuses.

A new cluster holds some 25 MB of catalogs; what is not needed to read two tables is dropped with
ordinary SQL and the rest is vacuumed, so that the packed archive stays below 1 MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tarfile
from pathlib import Path

PORT = "5499"

SHRINK = """
    UPDATE pg_database SET datistemplate = false;
    DROP DATABASE template0;
    DROP DATABASE template1;
    DROP SCHEMA information_schema CASCADE;
    DELETE FROM pg_description;
    DELETE FROM pg_shdescription;
    DELETE FROM pg_collation WHERE collname NOT IN ('default', 'C', 'POSIX');
"""

CONTENT = "SELECT string_agg(n || ' ' || entry, E'\\n' ORDER BY n) FROM (TABLE ledger UNION ALL TABLE annex) AS rows"

SERVER_SETTINGS = {"listen_addresses": "", "port": PORT, "fsync": "off", "autovacuum": "off", "allow_system_table_mods": "on"}
# The original asks for a spread checkpoint, which waits minutes by default.
ARCHIVE_SETTINGS = {"archive_mode": "on", "checkpoint_timeout": "30s", "checkpoint_completion_target": "0.0"}


class Maker:
    """The cluster that is archived, and how to talk to it."""

    def __init__(self, directory: Path, postgres: Path, wal_e: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self._postgres = postgres
        self._wal_e = wal_e
        self._environ = {
            **os.environ,
            "PGHOST": str(directory),
            "PGPORT": PORT,
            "PGUSER": "postgres",
            "PGDATABASE": "postgres",
            "PGOPTIONS": "-c client_min_messages=warning",
            "WALE_FILE_PREFIX": f"file://localhost{directory}/archive",
            "WALE_LOG_DESTINATION": "stderr",
        }

    def initdb(self) -> None:
        self._run(self._postgres / "initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--wal-segsize=1")

    def start(self, **settings: str) -> None:
        given = {**SERVER_SETTINGS, "unix_socket_directories": str(self.directory), **settings}
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in given.items())
        self._run(self._postgres / "pg_ctl", "-D", self.data, "-w", "-l", self.directory / "server.log", "start")

    def stop(self, mode: str) -> None:
        self._run(self._postgres / "pg_ctl", "-D", self.data, "-w", "-m", mode, "stop")

    def is_running(self) -> bool:
        return (self.data / "postmaster.pid").exists()

    def sql(self, *commands: str) -> str:
        """Run commands, each a transaction of its own, and return what they print."""
        words = [word for command in commands for word in ("-c", command)]
        return self._run("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", *words).rstrip("\n")

    def wal_e(self, *args: str | Path) -> None:
        self._run(self._wal_e, *args)

    def _run(self, *argv: str | Path) -> str:
        try:
            return subprocess.run(argv, env=self._environ, cwd=self.directory, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True).stdout
        except subprocess.CalledProcessError as error:
            log = self.directory / "server.log"
            raise SystemExit(f"{error}\n{error.stdout}\n{log.read_text() if log.exists() else ''}") from None


def make_archive(maker: Maker, archive_command: str) -> None:
    """Make the cluster small and then its archive, with rows from before, and from after the backup."""
    maker.initdb()
    maker.start()
    try:
        maker.sql(*SHRINK.strip().split("\n"))
        maker.sql(
            f"CREATE TABLESPACE elsewhere LOCATION '{maker.directory}/elsewhere'",
            "CREATE TABLE ledger (n integer, entry text)",
            "CREATE TABLE annex (n integer, entry text) TABLESPACE elsewhere",
            "VACUUM FULL",
        )
        maker.stop("fast")
        maker.start(archive_command=archive_command, **ARCHIVE_SETTINGS)
        maker.sql(
            "INSERT INTO ledger SELECT n, 'entry ' || n || ' from before the backup' FROM generate_series(1, 500) AS n",
            "INSERT INTO annex SELECT n, 'entry ' || n || ' from before the backup, elsewhere' FROM generate_series(501, 600) AS n",
        )
        maker.wal_e("backup-push", maker.data)
        maker.sql(
            "INSERT INTO ledger SELECT n, 'entry ' || n || ' from after the backup' FROM generate_series(601, 900) AS n",
            "UPDATE annex SET entry = 'changed after the backup' WHERE n % 2 = 0",
        )
        (maker.directory / "facts.json").write_text(json.dumps(facts(maker), indent=1) + "\n")
        maker.stop("fast")  # archives what is left
    finally:
        if maker.is_running():
            maker.stop("immediate")


def facts(maker: Maker) -> dict[str, str]:
    """What the server says about itself and about its content."""
    return {
        "version": maker.sql("SELECT version()"),
        "system_identifier": maker.sql("SELECT system_identifier FROM pg_control_system()"),
        "tablespace": maker.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'elsewhere'"),
        "location": maker.sql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'elsewhere'"),
        "ledger": maker.sql("SELECT pg_relation_filepath('ledger')"),
        "annex": maker.sql("SELECT pg_relation_filepath('annex')"),
        "query": CONTENT,
        "answer": maker.sql(CONTENT),
    }


def pack(directory: Path) -> None:
    """Pack the store as it is, with its names, bytes and times; who made it is nobody's business."""

    def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        return info

    with tarfile.open(directory / "archive.tar.xz", "w:xz", preset=9) as tar:
        for name in ("facts.json", "archive"):
            tar.add(directory / name, name, filter=anonymous)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--postgres", type=Path, required=True, metavar="BINDIR", help="where initdb, pg_ctl and postgres of PostgreSQL 14 are")
    parser.add_argument("--wal-e", type=Path, required=True, metavar="PROGRAM", help="the wal-e script of the original, version 1.1.1")
    arguments = parser.parse_args()
    directory = arguments.directory.absolute()
    for name in (directory, directory / "archive", directory / "elsewhere"):
        name.mkdir(mode=0o700)
    make_archive(Maker(directory, arguments.postgres.absolute(), arguments.wal_e.absolute()), f"{arguments.wal_e.absolute()} wal-push %p")
    pack(directory)


if __name__ == "__main__":
    main()
