"""Compatibility with the original WAL-E 1.1.1 in network stores, proven with it: S3, Google Cloud Storage, Swift.

In the latter two the names of the original's objects begin with a slash. It makes backups of PostgreSQL 14 at most, which
only the slow test has; the others put the backup that is kept in ``original/archive.tar.xz`` there with the vendor's
client, under the names that the original gives. What else is the original's in a test, the original did.
"""

import json
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import fix_s3
import pytest
from fix_archive import records, settled
from fix_gcs import gcs_server, new_bucket
from fix_postgres import Server, give_to_server_user
from fix_swift import owner, swift_container, swift_server
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as google_storage
from servers import gcs_token, moto
from swiftclient import client as swift_client

ARCHIVE = Path(__file__).parent / "original/archive.tar.xz"
SENTINEL = "_backup_stop_sentinel.json"
ABSENT = "0000000100000000000000FF"
BOTO_ENDS_AT = (3, 12)


class Place(NamedTuple):
    """A prefix in a new container: the variables that name it to both programs, and the container as its vendor's client sees it.

    ``slashed`` and ``plain`` are what the names of objects below the prefix begin with, in the manner of the original and in ours.
    """

    environ: dict[str, str]
    names: Callable[[], list[str]]
    put: Callable[[str, bytes], object]
    slashed: str = "/pg/main/"
    plain: str = "pg/main/"


def s3(request) -> Place:
    python = request.getfixturevalue("original_wal_e_with_stores").with_name("python")
    code = "import sys; print(*sys.version_info[:2])"
    version = tuple(map(int, subprocess.check_output([python, "-I", "-c", code], text=True).split()))
    if version >= BOTO_ENDS_AT:
        pytest.skip("the original's boto 2.49 cannot be imported by Python 3.12 and later")
    server, bucket, client = fix_s3.server(moto), fix_s3.new_bucket(moto), fix_s3.admin(moto)
    environ = {
        "WALE_S3_PREFIX": f"s3://{bucket}/pg/main",
        "WALE_S3_ENDPOINT": f"http+path://127.0.0.1:{server.port}",
        "AWS_REGION": server.region,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
    }

    def names() -> list[str]:
        return [found["Key"] for found in client.list_objects_v2(Bucket=bucket).get("Contents", [])]

    def put(name: str, content: bytes) -> None:
        client.put_object(Bucket=bucket, Key=name, Body=content, ServerSideEncryption="AES256")

    return Place(environ, names, put, slashed="pg/main/")


def gcs(request) -> Place:
    server, name = gcs_server(), new_bucket()
    environ = {
        "WALE_GS_PREFIX": f"gs://{name}/pg/main",
        "STORAGE_EMULATOR_HOST": server.url,
        "GOOGLE_APPLICATION_CREDENTIALS": str(request.getfixturevalue("google_key")),
        "HTTPS_PROXY": "http://127.0.0.1:9",  # nobody; or Google's library looks on the Internet for the regions of the account
    }
    client = google_storage.Client(project=server.project, credentials=AnonymousCredentials(), client_options={"api_endpoint": server.url})
    request.addfinalizer(client.close)
    bucket = client.bucket(name)
    return Place(environ, lambda: [blob.name for blob in bucket.list_blobs()], lambda name, content: bucket.blob(name).upload_from_string(content))


def swift(request) -> Place:
    server, container = swift_server(), swift_container()
    environ = {
        "WALE_SWIFT_PREFIX": f"swift://{container}/pg/main",
        "SWIFT_AUTHURL": server.auth_url,
        "SWIFT_AUTH_VERSION": "1",
        "SWIFT_USER": server.user,
        "SWIFT_PASSWORD": server.key,
    }

    def names() -> list[str]:
        return [found["name"] for found in swift_client.get_container(*owner(), container, full_listing=True)[1]]

    return Place(environ, names, lambda name, content: swift_client.put_object(*owner(), container, name, content))


@pytest.fixture(scope="module")
def google_key(_server_root):
    """The key file of a service account, readable to the server's user."""
    directory = Path(tempfile.mkdtemp(prefix="google-", dir=_server_root))
    with gcs_token.running(directory) as endpoint:
        path = endpoint.key_file()
        give_to_server_user(directory)
        yield path


PLACES = {"s3": s3, "gcs": gcs, "swift": swift}


@pytest.fixture(params=PLACES)
def place(request) -> Place:
    return PLACES[request.param](request)


only_slashed = pytest.mark.parametrize("place", ["gcs", "swift"], indirect=True)


class Kept(NamedTuple):
    """The archive that is kept here, in a network store; ``files`` has its content by key, ``host`` runs programs."""

    host: Server
    place: Place
    files: dict[str, bytes]

    @property
    def name(self) -> str:
        (key,) = (key for key in self.files if key.endswith(SENTINEL))
        return key.removeprefix("basebackups_005/").removesuffix(SENTINEL)

    @property
    def wal(self) -> dict[str, bytes]:
        """Names and contents of the WAL files."""
        return {key.removeprefix("wal_005/").removesuffix(".lzo"): plain(stored) for key, stored in self.files.items() if key.startswith("wal_005/")}


def plain(stored: bytes) -> bytes:
    return subprocess.run(["lzop", "-dc"], input=stored, stdout=subprocess.PIPE, check=True).stdout


@pytest.fixture
def kept(make_place, place, original_wal_e_with_stores) -> Kept:
    """The archive as the original would have made it in this store: the backup is a copy, the WAL it pushes now."""
    host = make_place()
    host.environ |= {**place.environ, "WALE_LOG_DESTINATION": "stderr"}
    with tarfile.open(ARCHIVE) as tar:
        files = {info.name.removeprefix("archive/"): tar.extractfile(info).read() for info in tar if info.isfile() and info.name.startswith("archive/")}
    archive = Kept(host, place, files)
    for key in sorted(files, key=lambda key: key.endswith(SENTINEL)):
        if key.startswith("basebackups_005/"):
            place.put(place.slashed + key, files[key])
    pg_wal, status = host.make_directory("pg_wal"), host.make_directory("pg_wal/archive_status")
    for name, content in archive.wal.items():
        (pg_wal / name).write_bytes(content)
        if not name.endswith(".backup"):
            (status / f"{name}.ready").touch()  # is taken along by a push
    give_to_server_user(status)
    for name in min(archive.wal), next(name for name in archive.wal if name.endswith(".backup")):
        host.run([original_wal_e_with_stores, "wal-push", pg_wal / name])
    assert sorted(place.names()) == sorted(place.slashed + key for key in files)
    return archive


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def listed(host: Server) -> list[str]:
    return [row["name"] for row in json.loads(host.wal_e("backup-list", "--json").stdout)]


def listed_by_the_original(host: Server, original: Path) -> list[str]:
    return [row.split("\t")[0] for row in host.run([original, "backup-list"]).stdout.split("\n")[1:-1]]


def test_what_the_original_pushed_is_listed_and_fetched(kept, original_wal_e_with_stores):
    assert listed(kept.host) == listed_by_the_original(kept.host, original_wal_e_with_stores) == [kept.name]
    destination = kept.host.directory / "fetched"
    for name, content in kept.wal.items():
        kept.host.wal_e("wal-fetch", name, str(destination), "-p", "0")
        assert destination.read_bytes() == content
    assert kept.host.wal_e("wal-fetch", ABSENT, str(destination), "-p", "0", check=False).returncode == 1

    by_us, by_original = kept.host.directory / "by-us", kept.host.make_directory("by-original")
    fetched = kept.host.wal_e("backup-fetch", "--blind-restore", str(by_us), "LATEST")
    assert [record.message for record in records(fetched.stderr) if record.level == "WARNING"] == [f"{kept.name} is not verifiable"]
    kept.host.run([original_wal_e_with_stores, "backup-fetch", "--blind-restore", by_original, "LATEST"])
    ours, theirs = tree(by_us), tree(by_original)
    del theirs["tablespace_map"]  # would replace the tablespaces by links to their source
    assert ours == theirs
    assert all(name.startswith(kept.place.slashed) for name in kept.place.names())


@only_slashed
def test_deletion_finds_the_names_with_a_slash(kept):
    """An older backup is made from the kept one: one segment earlier, where there is WAL of the original."""
    host, place, name = kept.host, kept.place, kept.name
    older = name.replace("0000000F_", "0000000E_")
    for key in [key for key in kept.files if key.startswith("basebackups_005/")]:
        place.put(place.slashed + key.replace(name, older), kept.files[key])
    place.put(f"{place.slashed}basebackups_005/{name}{SENTINEL}", kept.files[f"basebackups_005/{name}{SENTINEL}"])  # so that it is the younger
    assert listed(host) == [older, name]
    before = place.names()
    host.wal_e("delete", "retain", "1")
    assert place.names() == before
    host.wal_e("delete", "--confirm", "retain", "1")
    assert sorted(place.names()) == sorted(place.slashed + key for key in kept.files if key != "wal_005/00000001000000000000000E.lzo")


@only_slashed
def test_new_prefixes_beside_an_archive_of_the_original_have_no_slash(kept):
    """One is shorter by a letter, the other deeper."""
    host, place = kept.host, kept.place
    path = host.directory / "pg_wal/000000010000000000000010"
    (variable,) = (name for name in place.environ if name.endswith("_PREFIX"))
    for root in ("pg/mai", "pg/main/deeper"):
        before = place.names()
        host.wal_e("wal-push", str(path), env={variable: place.environ[variable].replace("pg/main", root)})
        assert sorted(set(place.names()) - set(before)) == [f"{root}/identity_005.json", f"{root}/wal_005/{path.name}.lzo"]


def ended_segment(server: Server) -> str:
    """Write something, end the segment, and return its name when all is archived."""
    server.psql("select pg_logical_emit_message(false, 'test', 'something')")
    segment = server.psql("select pg_walfile_name(pg_switch_wal())")
    settled(server)
    return segment


def archive_by(server: Server, command: str) -> None:
    server.configure(archive_command=command)
    server.reload()
    server.wait_for(f"select current_setting('archive_command') = '{command}'")


def test_a_prefix_of_the_original_is_carried_on_so_that_the_original_can_read_it(make_server, place, original_wal_e_with_stores):
    original = original_wal_e_with_stores
    origin = make_server(wal_segsize_mb=1)
    origin.environ |= {**place.environ, "WALE_LOG_DESTINATION": "stderr"}
    origin.start(archive_mode="on", archive_command=f"{original} wal-push %p")
    first = ended_segment(origin)
    contents = {first: (origin.data / "pg_wal" / first).read_bytes()}
    theirs = place.names()
    assert f"{place.slashed}wal_005/{first}.lzo" in theirs

    archive_by(origin, "wal-e wal-push %p")
    origin.wal_e("wal-push", str(origin.data / "pg_wal" / first))  # a server may ask again for what is there
    assert set(place.names()) - set(theirs) == {f"{place.slashed}identity_005.json"}
    origin.psql("create table t as select n, md5(n::text) from generate_series(1, 1000) as n")
    origin.wal_e("backup-push", str(origin.data), "--fast", "--pool-size", "2")
    origin.psql("insert into t select n, md5(n::text) from generate_series(1001, 2000) as n")
    last = ended_segment(origin)
    contents[last] = (origin.data / "pg_wal" / last).read_bytes()
    assert all(name.startswith(place.slashed) for name in place.names())
    assert listed_by_the_original(origin, original) == listed(origin)

    fetched = origin.directory / "fetched"
    for program, name in (("wal-e", first), (original, last)):
        origin.run([program, "wal-fetch", "-p", "0", name, fetched])
        assert fetched.read_bytes() == contents[name]

    by_us, by_original = origin.directory / "by-us", origin.make_directory("by-original")
    origin.wal_e("backup-fetch", str(by_us), "LATEST")
    origin.run([original, "backup-fetch", by_original, "LATEST"])
    ours, theirs = tree(by_us), tree(by_original)
    assert (set(ours) - set(theirs), set(theirs) - set(ours)) == ({"backup_manifest"}, set())
    assert all(ours[name] == content for name, content in theirs.items())


@only_slashed
def test_no_name_of_a_new_prefix_begins_with_a_slash(make_server, place):
    server = make_server(wal_segsize_mb=1)
    server.environ |= {**place.environ, "WALE_LOG_DESTINATION": "stderr"}
    server.start(archive_mode="on", archive_command="wal-e wal-push %p")
    server.wal_e("backup-push", str(server.data), "--fast", "--pool-size", "2")
    settled(server)
    assert all(name.startswith(place.plain) for name in place.names())
    assert len(listed(server)) == 1


def start_14(server: Server, postgres_14: Path, **settings: str) -> None:
    server.configure(listen_addresses="", port=str(server.port), unix_socket_directories=str(server.socket_dir), fsync="off", **settings)
    started = server.run([postgres_14 / "pg_ctl", "-D", server.data, "-w", "-l", server.log, "start"], check=False, libpq=False)
    assert started.returncode == 0, server.log_text()


@pytest.fixture
def server_14(make_server, make_place, place, postgres_14, original_wal_e_with_stores) -> Server:
    """A running PostgreSQL 14 that archives with the original."""
    data = make_place().directory / "data"
    run = Server(data.parent, data).run
    run([postgres_14 / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--wal-segsize=1"], libpq=False)
    server = make_server(data=data)
    server.environ |= {**place.environ, "WALE_LOG_DESTINATION": "stderr"}
    quick = {"checkpoint_timeout": "30s", "checkpoint_completion_target": "0.0"}  # the original asks for a spread checkpoint
    start_14(server, postgres_14, archive_mode="on", archive_command=f"{original_wal_e_with_stores} wal-push %p", **quick)
    return server


def recovered_14(make_server, origin: Server, postgres_14: Path, target: Path, program: object) -> Server:
    """Start PostgreSQL 14 on what was fetched, and let it recover to the end of the archive with a program."""
    (target / "pg_hba.conf").write_text("local all all trust\n")
    (target / "recovery.signal").touch()
    server = make_server(data=target)
    server.environ |= {name: value for name, value in origin.environ.items() if name not in server.environ}
    start_14(server, postgres_14, archive_mode="off", restore_command=f'{program} wal-fetch -p 0 "%f" "%p"')
    server.wait_for("select not pg_is_in_recovery()")
    return server


def fill(server: Server, first: int, last: int) -> None:
    server.psql("create table if not exists t (n int, filler text)")
    server.psql(f"insert into t select n, repeat(md5(n::text), 60) from generate_series({first}, {last}) as n")


@pytest.mark.slow
def test_a_server_recovers_with_either_from_the_backups_of_both(make_server, server_14, place, postgres_14, original_wal_e_with_stores):
    original, origin = original_wal_e_with_stores, server_14
    fill(origin, 1, 1000)
    origin.run([original, "backup-push", origin.data])
    (theirs,) = listed(origin)
    archive_by(origin, "wal-e wal-push %p")
    fill(origin, 1001, 2000)
    origin.wal_e("backup-push", str(origin.data), "--fast")
    fill(origin, 2001, 3000)
    ended_segment(origin)
    _, ours = listed(origin)
    assert listed_by_the_original(origin, original) == [theirs, ours]
    assert all(name.startswith(place.slashed) for name in place.names())

    target, everything = origin.directory / "by-us", "3000|3000|3000"
    origin.wal_e("backup-fetch", str(target), theirs)
    assert recovered_14(make_server, origin, postgres_14, target, "wal-e").psql("select count(*), count(distinct n), max(n) from t") == everything
    target = origin.make_directory("by-original")
    origin.run([original, "backup-fetch", target, ours])
    assert recovered_14(make_server, origin, postgres_14, target, original).psql("select count(*), count(distinct n), max(n) from t") == everything

    origin.wal_e("delete", "--confirm", "retain", "1")
    assert listed_by_the_original(origin, original) == listed(origin) == [ours]
    left = [name.removeprefix(place.slashed) for name in place.names()]
    assert not [key for key in left if key.startswith(f"basebackups_005/{theirs}")]
    assert min(key for key in left if key.startswith("wal_005/")).startswith(f"wal_005/{ours[5:29]}.")
