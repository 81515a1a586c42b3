"""Compatibility with the original WAL-E 1.1.1, proven with it: each restores what the other pushed.

What the original pushed is kept in ``original/archive.tar.xz``; see the README there.
"""

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest
from fix_archive import records, settled
from fix_postgres import Server, bindir, give_to_server_user

from wal_e.postgres.control import read_control
from wal_e.postgres.label import parse_backup_label

HERE = Path(__file__).parent / "original"
NOT_VERIFIABLE = "is not verifiable"
NOT_IN_IT = ("postgresql.conf", "pg_hba.conf", "pg_ident.conf")  # the original leaves them out of its backups


class Made(NamedTuple):
    """An archive that the original made, what its server said, and where it lies: beside the data directory of ``host``."""

    host: Server
    store: Path
    facts: dict[str, str]

    @property
    def name(self) -> str:
        (sentinel,) = (self.store / "basebackups_005").glob("*.json")
        return sentinel.name.removesuffix("_backup_stop_sentinel.json")

    def spec(self, location: Path) -> Path:
        """A restore spec that puts the tablespace there."""
        oid = self.facts["tablespace"]
        document = {"tablespaces": [oid], oid: {"loc": f"{location}/", "link": f"pg_tblspc/{oid}"}}
        path = self.host.directory / "spec.json"
        path.write_text(json.dumps(document))
        return path


def made(host: Server, directory: Path) -> Made:
    host.environ |= {"WALE_FILE_PREFIX": f"file://localhost{directory}/archive", "WALE_LOG_DESTINATION": "stderr"}
    return Made(host, directory / "archive", json.loads((directory / "facts.json").read_text()))


@pytest.fixture
def kept(make_server) -> Made:
    """The archive that is kept here."""
    host = make_server()
    directory = host.make_directory("kept")
    with tarfile.open(HERE / "archive.tar.xz") as tar:
        trusted = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
        tar.extractall(directory, **trusted)
    give_to_server_user(directory)
    return made(host, directory)


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every path below a directory; of a file its mode and content."""
    return {str(path.relative_to(root)): (path.stat().st_mode, path.read_bytes()) if path.is_file() else (0, b"") for path in root.rglob("*")}


def plain(stored: Path) -> bytes:
    return subprocess.run(["lzop", "-dc", stored], stdout=subprocess.PIPE, check=True).stdout


def test_the_kept_archive_is_at_most_a_mebibyte():
    assert (HERE / "archive.tar.xz").stat().st_size <= 1 << 20


def test_a_backup_of_the_original_is_listed(kept):
    sentinel = json.loads((kept.store / f"basebackups_005/{kept.name}_backup_stop_sentinel.json").read_text())
    for query in ([], ["LATEST"], [kept.name]):
        _, row, end = kept.host.wal_e("backup-list", "--detail", *query).stdout.split("\n")
        name, _, *rest = row.split("\t")
        _, segment, offset = name.split("_")
        stop = [sentinel["wal_segment_backup_stop"], sentinel["wal_segment_offset_backup_stop"]]
        assert (name, rest, end) == (kept.name, [str(sentinel["expanded_size_bytes"]), segment, offset, *stop], "")


def test_a_backup_of_the_original_is_restored_as_the_original_restores_it(kept, original_wal_e):
    by_us, by_original = kept.host.directory / "by-us", kept.host.make_directory("by-original")
    fetched = kept.host.wal_e("backup-fetch", "--blind-restore", str(by_us), "LATEST")
    warnings = [record for record in records(fetched.stderr) if record.level == "WARNING"]
    assert [record.message for record in warnings] == [f"{kept.name} {NOT_VERIFIABLE}"]
    assert all(name in warnings[0].text for name in NOT_IN_IT)
    kept.host.run([original_wal_e, "backup-fetch", "--blind-restore", by_original, "LATEST"])
    ours, theirs = tree(by_us), tree(by_original)
    del theirs["tablespace_map"]  # would replace the tablespaces by links to their source
    assert ours == theirs
    assert by_us.stat().st_mode == by_original.stat().st_mode


def test_a_backup_of_the_original_is_restored_with_what_it_held(kept):
    target, location = kept.host.directory / "restored", kept.host.directory / "tablespace"
    kept.host.wal_e("backup-fetch", str(target), kept.name, "--restore-spec", str(kept.spec(location)))
    control = read_control(str(target))  # raises unless its CRC is right
    assert (control.major, str(control.system_identifier)) == (14, kept.facts["system_identifier"])
    assert (target / "PG_VERSION").read_text() == "14\n"
    assert parse_backup_label((target / "backup_label").read_text()).start_segment in kept.name
    assert (target / "pg_tblspc" / kept.facts["tablespace"]).readlink() == location
    assert (target / "tablespace_map").read_text() == f"{kept.facts['tablespace']} {location}\n"
    ledger, annex = (target / kept.facts["ledger"]).read_bytes(), (target / kept.facts["annex"]).read_bytes()
    assert all(b"entry %d from before the backup" % n in ledger for n in range(1, 501))
    assert all(b"entry %d from before the backup, elsewhere" % n in annex for n in range(501, 601))


def test_wal_fetch_brings_what_the_original_pushed(kept):
    destination = kept.host.directory / "fetched"
    for stored in sorted((kept.store / "wal_005").iterdir()):
        kept.host.wal_e("wal-fetch", stored.name.removesuffix(".lzo"), str(destination), "--prefetch", "0")
        assert destination.read_bytes() == plain(stored)
    assert kept.host.wal_e("wal-fetch", "0000000100000000000000FF", str(destination), "--prefetch", "0", check=False).returncode == 1


def test_a_prefix_of_the_original_is_taken_over_by_a_working_server(make_server, original_wal_e):
    server = make_server(settings={"archive_mode": "on"})
    store = server.make_directory("store")
    server.environ |= {"WALE_FILE_PREFIX": f"file://localhost{store}", "WALE_LOG_DESTINATION": "stderr"}
    server.start(archive_command=f"{original_wal_e} wal-push %p")
    first = ended_segment(server)
    pushed = (store / f"wal_005/{first}.lzo").read_bytes()

    server.configure(archive_command="wal-e wal-push %p")
    server.reload()
    server.wait_for("select current_setting('archive_command') = 'wal-e wal-push %p'")
    server.wal_e("wal-push", str(server.data / "pg_wal" / first))  # a server may ask again for what is there
    assert (store / f"wal_005/{first}.lzo").read_bytes() == pushed
    second = ended_segment(server)
    assert sorted(path.name for path in (store / "wal_005").iterdir())[:2] == [f"{first}.lzo", f"{second}.lzo"]
    assert (store / "identity_005.json").exists()


def ended_segment(server: Server) -> str:
    """Write something, end the segment, and return its name when it is archived."""
    server.psql("select pg_logical_emit_message(false, 'test', 'something')")
    segment = server.psql("select pg_walfile_name(pg_switch_wal())")
    settled(server)
    return segment


@pytest.fixture
def gpg(make_server):
    """Makes a key for a server's user and sets the variables that encrypt for it."""
    homes = []

    def set_up(server: Server) -> None:
        home = server.make_directory("gnupg")
        homes.append((server, home))
        server.environ |= {"GNUPGHOME": str(home), "WALE_GPG_KEY_ID": "archive@example.com"}
        server.run(["gpg", "--batch", "--quiet", "--passphrase", "", "--quick-gen-key", "archive@example.com", "rsa2048", "encr", "1d"])

    yield set_up
    for server, _ in homes:
        server.run(["gpgconf", "--kill", "all"])


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "gpg"])
def test_the_original_restores_what_this_one_pushed(make_server, original_wal_e, gpg, encrypted):
    origin = make_server()
    store = origin.make_directory("store")
    origin.environ |= {"WALE_FILE_PREFIX": f"file://localhost{store}", "WALE_LOG_DESTINATION": "stderr"}
    if encrypted:
        gpg(origin)
    origin.start(archive_mode="on", archive_command="wal-e wal-push %p")
    origin.pgbench("-i", "-q", "-s", "1")
    origin.wal_e("backup-push", str(origin.data), "--fast", "--pool-size", "2")
    origin.pgbench("-n", "-t", "200")
    last = ended_segment(origin)
    (name,) = (row.split("\t")[0] for row in origin.wal_e("backup-list").stdout.split("\n")[1:-1])
    stored = (store / f"wal_005/{last}.lzo").read_bytes()
    assert stored.startswith(b"\x89LZO") != encrypted

    header, row, end = origin.run([original_wal_e, "backup-list", "--detail"]).stdout.split("\n")
    assert header == origin.wal_e("backup-list").stdout.split("\n")[0]
    assert (row.split("\t")[0], end) == (name, "")
    segment = origin.directory / last
    origin.run([original_wal_e, "wal-fetch", "-p", "0", last, segment])
    assert segment.read_bytes() == (origin.data / "pg_wal" / last).read_bytes()

    target = origin.make_directory("restored")
    origin.run([original_wal_e, "backup-fetch", target, "LATEST"])
    restored = make_server(data=target)
    restored.environ |= origin.environ
    (target / "recovery.signal").touch()
    restored.start(archive_mode="off", restore_command=f'{original_wal_e} wal-fetch -p 0 "%f" "%p"')
    restored.wait_for("select not pg_is_in_recovery()")
    assert dump(restored) == dump(origin)


def dump(server: Server) -> list[str]:
    """The lines of a dump, without the random words that newer pg_dumps put around it."""
    return [line for line in server.run([bindir() / "pg_dump"]).stdout.split("\n") if not line.startswith(("\\restrict", "\\unrestrict"))]


def recovered_14(make_server, archive: Made, postgres_14: Path, target: Path, **settings: str) -> Server:
    """Start PostgreSQL 14 on what was restored from an archive of the original, and let it recover to the end."""
    (target / "pg_hba.conf").write_text("local all all trust\n")
    (target / "recovery.signal").touch()
    server = make_server(data=target)
    server.environ |= {name: value for name, value in archive.host.environ.items() if name != "PATH"}
    server.configure(listen_addresses="", port=str(server.port), unix_socket_directories=str(server.socket_dir))
    server.configure(restore_command='wal-e wal-fetch "%f" "%p"', **settings)
    argv = [postgres_14 / "pg_ctl", "-D", target, "-w", "-l", server.log, "start"]
    assert server.run(argv, check=False, libpq=False).returncode == 0, server.log_text()
    server.wait_for("select not pg_is_in_recovery()")
    return server


@pytest.mark.slow
@pytest.mark.parametrize("tablespaces", ["links", "spec", "blind"])
def test_a_server_recovers_from_what_the_original_pushed(make_server, kept, postgres_14, tablespaces):
    target, location = kept.host.directory / "restored", kept.host.make_directory("tablespace")
    if tablespaces == "links":
        (target / "pg_tblspc").mkdir(parents=True)
        (target / "pg_tblspc" / kept.facts["tablespace"]).symlink_to(location)
        give_to_server_user(target)
    options = {"links": (), "spec": ("--restore-spec", str(kept.spec(location))), "blind": ("--blind-restore",)}[tablespaces]
    kept.host.wal_e("backup-fetch", str(target), "LATEST", *options)
    in_place = {"allow_in_place_tablespaces": "on"} if tablespaces == "blind" else {}  # or the server finds fault with directories
    server = recovered_14(make_server, kept, postgres_14, target, **in_place)
    assert server.psql(kept.facts["query"]) == kept.facts["answer"]
    assert (next(location.iterdir(), None) is None) == (tablespaces == "blind")


@pytest.mark.slow
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "gpg"])
def test_a_server_recovers_from_an_archive_made_anew(make_server, original_wal_e, postgres_14, gpg, encrypted):
    host = make_server()
    if encrypted:
        gpg(host)
    directory = host.directory / "made"
    try:
        host.run([sys.executable, HERE / "make_archive.py", directory, "--postgres", postgres_14, "--wal-e", original_wal_e])
    finally:
        Server(host.directory, directory / "data").end()
    anew = made(host, directory)
    stored = next((anew.store / "wal_005").iterdir()).read_bytes()
    assert stored.startswith(b"\x89LZO") != encrypted

    target = host.directory / "restored"
    host.wal_e("backup-fetch", str(target), "LATEST", "--restore-spec", str(anew.spec(host.directory / "tablespace")))
    server = recovered_14(make_server, anew, postgres_14, target)
    assert server.psql(anew.facts["query"]) == anew.facts["answer"]
