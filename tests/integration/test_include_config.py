"""Configuration outside the data directory, as on Debian: told about, taken along, and brought back into a directory of its own."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from fix_archive import Watched, backups, records, refusal, script, settled, unchanged, warnings
from fix_postgres import Server, bindir, give_to_server_user

CONFIG = "etc/my möbel"  # a space, and not ASCII


class Debian(NamedTuple):
    """A running server whose configuration is in ``config``, a store, and the names of its backups: one without and one with that configuration."""

    server: Server
    config: Path
    store: Path
    names: list[str]


def launched(server: Server, config: Path, data: Path) -> None:
    """Start a server as Debian does: all that it knows is in the configuration and in the words that name it."""
    options = shlex.join(["-c", f"config_file={config}/postgresql.conf"])
    server.run([bindir() / "pg_ctl", "-D", data, "-w", "-t", "60", "-l", server.log, "-o", options, "start"], libpq=False)


def laid_out(server: Server) -> Path:
    """Move the configuration out of a data directory that is not running; return where it is."""
    config = server.directory / CONFIG
    for name in ("conf.d", "empty.d"):  # the one of Debian is empty at first
        (config / name).mkdir(parents=True)
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        (server.data / name).rename(config / name)
    with (config / "postgresql.conf").open("a") as stream:
        stream.write(
            f"data_directory = '{server.data}'\nhba_file='{config}/pg_hba.conf'\nident_file = '{config}/pg_ident.conf'\n"
            f"external_pid_file = '{server.directory}/main.pid'\nunix_socket_directories = '{server.directory}'\nlisten_addresses = ''\nport = {server.port}\n"
            "fsync = off\nautovacuum = off\nshared_buffers = 8MB\narchive_mode = on\narchive_command = 'wal-e wal-push %p'\n"
            "include_dir 'conf.d'\ninclude_dir 'empty.d'\ninclude 'only.conf'\ninclude_if_exists 'absent.conf'\n"
        )
    (config / "only.conf").write_text("include 'deep.conf'\n")
    (config / "deep.conf").write_text("work_mem = '5MB'\n")
    (config / "conf.d" / "a.conf").write_text("work_mem = '6MB'\n")
    (config / "conf.d" / "b.conf").write_text("# nothing yet\n")
    (config / "conf.d" / "c.conf.bak").write_text("no configuration")
    (config / "server.key").write_text("secret")
    (config / "pg_hba.conf").chmod(0o640)
    with (config / "pg_hba.conf").open("a") as stream:
        stream.write('local all @"the users" trust\n')
    (config / "the users").write_text("somebody, @more\n")
    (config / "more").write_text("somebody_else\n")
    give_to_server_user(server.directory / "etc")
    return config


KEPT = {
    *("postgresql.conf", "pg_hba.conf", "pg_ident.conf", "only.conf", "deep.conf", "conf.d/a.conf", "conf.d/b.conf", "the users", "more"),
}


@pytest.fixture(scope="module")
def debian(make_shared_server):
    server = make_shared_server()
    config = laid_out(server)
    store = server.make_directory("store")
    server.environ |= {"WALE_FILE_PREFIX": f"file://localhost{store}", "WALE_LOG_DESTINATION": "stderr"}
    launched(server, config, server.data)
    server.psql("create table t as select generate_series(1, 1000) as n")
    told = server.wal_e("backup-push", str(server.data), "--fast")
    assert not warnings(told)
    [told] = [record for record in records(told.stderr) if record.message == "the configuration is not in the backup"]
    assert f"{config}/postgresql.conf" in told.detail
    assert "--include-config" in told.hint
    server.psql("insert into t values (0)")
    server.wal_e("backup-push", str(server.data), "--fast", "--include-config")
    server.psql("select pg_switch_wal()")
    settled(server)
    names = backups(server)
    return Debian(server, config, store, names)


@pytest.fixture
def place(debian, make_place):
    """A place to restore into, with a copy of the store."""
    server = make_place()
    server.run(["cp", "-a", debian.store, server.directory / "store"])
    server.environ |= {"WALE_FILE_PREFIX": f"file://localhost{server.directory}/store", "WALE_LOG_DESTINATION": "stderr"}
    yield server
    server.end()


def blob(place, debian):
    return place.directory / "store" / "basebackups_005" / debian.names[1] / "config.tar.lzo"


def below(config: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path.relative_to(config)): (path.read_bytes(), path.stat().st_mode) for path in config.rglob("*") if path.is_file()}


def kept_files(debian) -> dict[str, tuple[bytes, int]]:
    return {name: value for name, value in below(debian.config).items() if name in KEPT}


def brought(debian, directory: Path) -> Path:
    return directory / str(debian.config).lstrip("/")


def untouched(place):
    return unchanged(*(place.directory / name for name in ("data", "store", "configuration", "x", "full", "file")))


def run(place, *args, env=None):
    return Watched(place, place.directory / "store")(*args, env=env)


def test_the_backup_says_what_it_keeps(debian):
    without, kept = json.loads(debian.server.wal_e("backup-list", "--json").stdout)
    assert without["configuration"] is None
    assert {str(Path(path).relative_to(debian.config)) for path in kept["configuration"]["files"]} == KEPT
    assert kept["configuration"]["places"]["config_file"] == f"{debian.config}/postgresql.conf"


def test_backup_fetch_brings_every_file_as_it_was_and_says_how_to_start(debian, place):
    directory = place.directory / "configuration"
    result = run(place, "backup-fetch", str(place.data), "LATEST", "--config-to", str(directory))
    assert result.returncode == 0, result.stderr
    assert below(brought(debian, directory)) == kept_files(debian)
    assert f"data_directory={place.data}" in result.stdout
    assert not (place.data / "postgresql.conf").exists()


def test_without_a_directory_for_it_the_plan_names_what_is_kept_and_start_asks_for_one(debian, place):
    said = run(place, "restore", str(place.data), "--dry-run").stdout
    [line] = re.findall(r"^config +(.*)$", said, re.M)
    assert line.startswith(f"from {debian.config}: ")
    assert "conf.d/a.conf" in line
    assert "--config-to" in line
    assert f"data_directory={place.data}" in said
    with untouched(place):
        refusal(run(place, "restore", str(place.data), "--start"), 2, "cannot be started", "--config-to DIR")
        refusal(run(place, "restore", str(place.data), "--start", "--backup", debian.names[0]), 2, "--include-config")
        refusal(run(place, "restore", str(place.data), "--config-to", f"{place.directory}/x", "--backup", debian.names[0]), 2, "keeps no configuration")


@pytest.mark.parametrize("role", ["primary", pytest.param("standby", marks=pytest.mark.slow)])
def test_a_restored_server_is_started_on_its_own_data_with_what_was_brought(debian, place, role):
    directory = place.directory / "configuration"
    debian.server.stop()  # its port and its archive are those of the copy, as on the night itself
    try:
        extra = ["--standby"] if role == "standby" else []
        place.wal_e("restore", str(place.data), "--start", "--config-to", str(directory), "--bindir", str(bindir()), *extra)
        place.port, place.socket_dir = debian.server.port, debian.server.directory
        assert place.psql("select count(*) from t") == "1001"
        assert place.psql("show work_mem") == "5MB"
        assert place.psql("show data_directory") == str(place.data)
        assert place.psql("select pg_is_in_recovery()") == ("t" if role == "standby" else "f")
        assert place.psql("show hba_file") == f"{brought(debian, directory)}/pg_hba.conf"
        assert not (debian.server.directory / "main.pid").exists()
        for verb in (("wal-status", str(place.data)), ("check", str(place.data))):
            assert "config" not in "".join(record.text for record in records(place.wal_e(*verb, check=False).stderr) if record.level == "ERROR")
        if role == "primary":
            pushed = place.wal_e("backup-push", str(place.data), "--fast", "--include-config", check=False)
            assert pushed.returncode == 0, pushed.stderr
    finally:
        place.stop()
        launched(debian.server, debian.config, debian.server.data)


def test_a_backup_without_any_configuration_in_it_is_drilled(place):
    result = run(place, "drill", "--bindir", str(bindir()))
    assert result.returncode == 0, result.stderr
    assert "is proven to restore" in result.stdout


@pytest.mark.slow
def test_a_copy_is_brought_up_to_date_with_its_configuration(debian, place):
    run(place, "restore", str(place.data), "--backup", debian.names[0])
    directory = place.directory / "configuration"
    result = run(place, "restore", str(place.data), "--delta", "--config-to", str(directory))
    assert result.returncode == 0, result.stderr
    assert below(brought(debian, directory)) == kept_files(debian)


def test_a_flipped_byte_stops_the_restore_with_the_name_of_the_key(debian, place):
    path = blob(place, debian)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with untouched(place):
        refusal(run(place, "restore", str(place.data), "--config-to", f"{place.directory}/configuration"), 2, f"{debian.names[1]}/config.tar.lzo")


@pytest.mark.slow
def test_the_deletion_of_a_backup_takes_its_configuration_along(debian, place):
    assert run(place, "delete", "--confirm", "everything").returncode == 0
    assert not blob(place, debian).exists()


def test_what_cannot_be_read_is_an_error_before_anything_is_stored(debian):
    server, path = debian.server, debian.config / "conf.d" / "a.conf"
    path.chmod(0)
    push = ["backup-push", str(server.data), "--fast", "--include-config"]
    try:
        with unchanged(debian.store):
            refusal(Watched(server, debian.store)(*push), 2, str(path), "Permission denied", "--include-config")
    finally:
        path.chmod(0o600)


def test_a_role_that_may_not_know_where_the_files_are_is_told_what_to_grant(debian):
    server = debian.server
    server.psql("create role blind login replication; create role sees login; grant pg_read_all_settings to sees")
    functions = "pg_backup_start(text, boolean), pg_backup_stop(boolean)"
    if int(server.psql("show server_version_num")) < 150000:
        functions = "pg_start_backup(text, boolean, boolean), pg_stop_backup(boolean, boolean)"
    server.psql(f"grant execute on function {functions} to blind, sees")
    with unchanged(debian.store):
        refusal(Watched(server, debian.store)("backup-push", str(server.data), "--include-config", env={"PGUSER": "blind"}), 2, "pg_read_all_settings")
    result = Watched(server, debian.store)("backup-push", str(server.data), "--fast", "--include-config", env={"PGUSER": "sees"})
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_link_in_the_data_directory_counts_as_outside_and_one_into_it_as_inside(make_server):
    server = make_server()
    config = server.make_directory("etc")
    (server.data / "pg_hba.conf").rename(config / "rules")
    (server.data / "pg_hba.conf").symlink_to(config / "rules")
    (config / "ident").symlink_to(server.data / "pg_ident.conf")
    store = server.make_directory("store")
    server.environ |= {"WALE_FILE_PREFIX": f"file://localhost{store}", "WALE_LOG_DESTINATION": "stderr"}
    server.start(archive_mode="on", archive_command="wal-e wal-push %p", ident_file=str(config / "ident"))
    server.wal_e("backup-push", str(server.data), "--fast", "--include-config")
    [backup] = json.loads(server.wal_e("backup-list", "--json").stdout)
    assert backup["configuration"]["files"] == [f"{config}/rules"]
    assert backup["configuration"]["places"] == {"config_file": "postgresql.conf", "hba_file": f"{config}/rules", "ident_file": "pg_ident.conf"}


@pytest.mark.slow
def test_a_stopped_server_is_asked_by_the_words_it_was_started_with(make_server):
    server = make_server()
    config = laid_out(server)
    store = server.make_directory("store")
    server.environ |= {"WALE_FILE_PREFIX": f"file://localhost{store}", "WALE_LOG_DESTINATION": "stderr"}
    launched(server, config, server.data)
    server.stop()
    offline = ["backup-push", str(server.data), "--while-offline", "--include-config"]
    (server.data / "postmaster.opts").rename(server.directory / "opts")
    with unchanged(store):
        refusal(Watched(server, store)(*offline), 2, "cannot be found", "while it runs")
    (server.directory / "opts").rename(server.data / "postmaster.opts")
    assert Watched(server, store)(*offline).returncode == 0
    [backup] = json.loads(server.wal_e("backup-list", "--json").stdout)
    assert {str(Path(path).relative_to(config)) for path in backup["configuration"]["files"]} == KEPT


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg is not installed")
def test_in_an_encrypted_store_the_configuration_is_encrypted_and_comes_back(debian, place):
    home = place.make_directory("gpg")
    environ = {"GNUPGHOME": str(home)}
    generate = [
        "gpg",
        "--batch",
        "--quiet",
        "--pinentry-mode",
        "loopback",
        "--passphrase",
        "",
        "--quick-generate-key",
        "test",
        "future-default",
        "default",
        "0",
    ]
    try:
        place.run(generate, env=environ)
        secret = {**environ, "WALE_GPG_KEY_ID": "test"}
        debian.server.psql("select pg_switch_wal()")
        store = place.directory / "store"
        pushed = debian.server.wal_e("backup-push", str(debian.server.data), "--fast", "--include-config", env=secret)
        name = re.search(r"MSG: (base_\S+) is complete", pushed.stderr)[1]
        assert (debian.store / "basebackups_005" / name / "config.tar.lzo").read_bytes()[:1] != b"\x89"
        directory = place.directory / "configuration"
        environ["WALE_FILE_PREFIX"] = f"file://localhost{debian.store}"
        result = place.run([script(), "backup-fetch", place.data, name, "--config-to", directory], env=environ, check=False)
        assert result.returncode == 0, result.stderr
        assert store.exists()
        assert below(brought(debian, directory)) == kept_files(debian)
    finally:
        place.run(["gpgconf", "--kill", "gpg-agent"], env=environ, check=False)
