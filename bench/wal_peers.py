"""Who takes part in the comparison of WAL: how each is called, with which settings, on files or on S3."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from scratch import PgBackRest, Scratch, Server

BUCKET = "bench"


class Contestant(NamedTuple):
    """One way to push and fetch: command lines, variables, how its store gets empty, and its resident process if it has one."""

    name: str
    environ: dict[str, str]
    reset: Callable[[], None]
    push: Callable[[str], tuple[str | Path, ...]]
    fetch: Callable[[str, str], tuple[str | Path, ...]] | None
    resident: tuple[str | Path, ...] = ()


class S3(NamedTuple):
    """A server with TLS, its certificate, and its keys."""

    url: str
    port: int
    certificate: Path
    access_key: str
    secret_key: str
    region: str
    empty: Callable[[str], None]


@contextlib.contextmanager
def s3_store(place: Scratch) -> Iterator[S3]:
    """Run versitygw with TLS and an empty bucket."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import boto3
    from servers import versity

    directory = place.empty_directory("s3")
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    place.run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", certificate, *subject)
    before = place.background()
    with versity.running(directory, tls=(certificate, key)) as endpoint:
        place.server_pids |= place.background() - before
        keys = {"aws_access_key_id": endpoint.access_key, "aws_secret_access_key": endpoint.secret_key, "region_name": endpoint.region}
        bucket = boto3.resource("s3", endpoint_url=endpoint.url, verify=str(certificate), **keys).Bucket(BUCKET)
        bucket.create()

        def empty(prefix: str) -> None:
            bucket.objects.filter(Prefix=f"{prefix}/").delete()

        yield S3(endpoint.url, endpoint.port, certificate, endpoint.access_key, endpoint.secret_key, endpoint.region, empty)
    place.server_pids &= place.background()


def contestants(place: Scratch, server: Server, s3: S3 | None, original: str | None) -> list[Contestant]:
    """All that can take part here, each with a store of its own."""
    found = [
        like_wale("wal-e", place, s3, "wal-e", wale_environ),
        like_wale("wal-e, resident", place, s3, "wal-e", wale_environ)._replace(fetch=None, resident=("wal-e", "wal-archive", server.data)),
        *pgbackrests(place, server, s3),
    ]
    if original and not s3:
        found.append(like_wale("WAL-E 1.1.1", place, s3, original, wale_environ))
    if walg := shutil.which("wal-g"):
        found.append(like_wale("WAL-G", place, s3, walg, walg_environ))
    return found


def like_wale(name: str, place: Scratch, s3: S3 | None, program: str, environ: Callable[[str, S3 | None], dict[str, str]]) -> Contestant:
    """One with WAL-E's command line."""
    store = name.translate(str.maketrans("", "", ", ."))
    where = f"s3://{BUCKET}/{store}" if s3 else str(place.root / store)

    def reset() -> None:
        if s3:
            s3.empty(store)
        else:
            place.empty_directory(store)

    return Contestant(name, environ(where, s3), reset, lambda path: (program, "wal-push", path), lambda name, path: (program, "wal-fetch", name, path))


def wale_environ(where: str, s3: S3 | None) -> dict[str, str]:
    if s3 is None:
        return {"WALE_FILE_PREFIX": f"file://localhost{where}"}
    return {"WALE_S3_PREFIX": where, "WALE_S3_CA_FILE": str(s3.certificate), **aws_environ(s3)}


def walg_environ(where: str, s3: S3 | None) -> dict[str, str]:
    if s3 is None:
        return {"WALG_FILE_PREFIX": where}
    also = {"AWS_ENDPOINT": s3.url, "AWS_S3_FORCE_PATH_STYLE": "true", "WALG_S3_CA_CERT_FILE": str(s3.certificate)}
    return {"WALG_S3_PREFIX": where, **aws_environ(s3), **also}


def aws_environ(s3: S3) -> dict[str, str]:
    return {"AWS_ENDPOINT_URL": s3.url, "AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key, "AWS_REGION": s3.region}


def pgbackrests(place: Scratch, server: Server, s3: S3 | None) -> Iterator[Contestant]:
    repository = {}
    if s3:
        repository = {
            "repo1-type": "s3",
            "repo1-path": "/pgbackrest",
            "repo1-s3-bucket": BUCKET,
            "repo1-s3-endpoint": "localhost",
            "repo1-storage-port": str(s3.port),
            "repo1-s3-uri-style": "path",
            "repo1-s3-region": s3.region,
            "repo1-s3-key": s3.access_key,
            "repo1-s3-key-secret": s3.secret_key,
            "repo1-storage-ca-file": str(s3.certificate),
        }
    peer = PgBackRest(place, server, repository=repository)

    def reset() -> None:
        if s3:
            s3.empty("pgbackrest")
        peer.reset()

    for name, options in {"pgbackrest": (), "pgbackrest, async": ("--archive-async",)}.items():
        push, fetch = (*peer.argv, *options, "archive-push"), (*peer.argv, *options, f"--pg1-path={place.root / 'target'}", "archive-get")
        yield Contestant(name, {}, reset, lambda path, push=push: (*push, path), lambda name, path, fetch=fetch: (*fetch, name, path))
