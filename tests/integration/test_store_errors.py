"""Trouble with network stores, as the installed script tells it: each kind has its own error, in time, and wal-fetch never says "absent".

A case is one kind of trouble at one store: what is done to the variables, or to the answers, and what every verb it is tried with must say.
"""

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import build_wal
import fix_s3
import pytest
from azure.storage.blob import ContainerClient, ContainerSasPermissions, generate_container_sas
from fault_proxy import FaultProxy
from fault_rules import Answer, Rule, Stall
from fix_archive import Watched, records, unchanged
from fix_azure import azure_server
from fix_network import NETWORKS, Network
from fix_postgres import give_to_server_user
from fix_swift import owner, swift_server
from servers import gcs_token, versity
from servers.server import free_port
from swiftclient import client as swift_client

from wal_e.archive import layout
from wal_e.archive.archive import Archive
from wal_e.archive.sentinel import Facts, Sentinel, render_sentinel
from wal_e.operators.wal_push import push
from wal_e.pipeline.process import Blocking
from wal_e.postgres.wal import Lsn, segment_name
from wal_e.settings import Settings

MIB = 1 << 20
STORED, FROZEN, NEW, ABSENT = (segment_name(1, number * MIB, MIB) for number in (3, 4, 8, 9))
BACKUPS = [f"base_{segment_name(1, number * MIB, MIB)}_00000040" for number in (3, 4)]
VERBS = {
    "wal-fetch": ("wal-fetch", STORED, "pg_wal/RECOVERYXLOG", "-p", "0"),
    "wal-fetch-frozen": ("wal-fetch", FROZEN, "pg_wal/RECOVERYXLOG", "-p", "0"),
    "wal-fetch-absent": ("wal-fetch", ABSENT, "pg_wal/RECOVERYXLOG", "-p", "0"),
    "wal-push": ("wal-push", f"pg_wal/{NEW}"),
    "backup-list": ("backup-list",),
    "delete": ("delete", "--confirm", "retain", "1"),
}
STATUS = {"StoreMisconfigured": 2, "ConfigurationError": 2}  # of every verb but wal-fetch; any other class has 1
TIMES = {"WALE_FETCH_DEADLINE": "5", "WALE_PUSH_DEADLINE": "5"}  # long enough for what is asked again to be noticed
SHORT = {"WALE_FETCH_DEADLINE": "1", "WALE_PUSH_DEADLINE": "1", "WALE_CONNECT_TIMEOUT": "1", "WALE_READ_TIMEOUT": "1"}
UNRESOLVED = ".".join(["nowhere"] * 31) + ".example"  # too long for a question to a name server, so that none is asked
CREDENTIALS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "SWIFT_PASSWORD")


class Stock(NamedTuple):
    """A place with two backups, two segments of WAL, and what the service calls it."""

    network: Network
    container: str


class Case(NamedTuple):
    """One kind of trouble: the class of its error, words of it, the verbs that meet it, and those that do not.

    ``changes`` are variables, from the stock and the proxy's port; ``place`` is a container of Swift that gives this access to others.
    """

    store: str
    trouble: str
    error: str
    words: tuple[str, ...]
    verbs: str = "wal-fetch wal-push"
    works: str = ""
    changes: Callable[[Stock, int], dict[str, str]] = lambda stock, port: {}
    rules: Callable[[], list[Rule]] = list
    place: str = ""

    @property
    def id(self):
        return f"{self.store}-{self.trouble}".replace(" ", "-")


@functools.cache
def stocked(store: str, place: str) -> Stock:
    """The place of a kind of store that all cases read; ``place`` names another one, with other rights."""
    network = NETWORKS[store]()
    container = re.match(r"\w+://([^/]+)", next(url for name, url in network.environ.items() if name.endswith("_PREFIX")))[1]
    if place:
        swift_client.post_container(*owner(), container, {"X-Container-Read": place})
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        fix_s3.without_aws(patch, Path(directory))
        for name, value in network.environ.items():
            patch.setenv(name, value)
        fill(Archive.open(Settings(os.environ), Blocking()), Path(directory))
    return Stock(network, container)


def fill(archive: Archive, directory: Path) -> None:
    for name in (STORED, FROZEN):
        (directory / name).write_bytes(build_wal.build_segment(name))
        push(archive, str(directory / name))
    for number, name in enumerate(BACKUPS, 3):
        moment, start = datetime(2026, 3, number, tzinfo=UTC), Lsn(number * MIB + 40)
        facts = Facts(moment, moment, start, start, 1, build_wal.SYSTEM_IDENTIFIER, 15, MIB, 1, 1, layout.manifest_key(name, ".lzo"), "h", True, "2")
        archive.store.put(layout.version_key(name), [b"PostgreSQL 15"])
        archive.store.put(layout.partition_key(name, 0, ".lzo"), [b"x"])
        archive.store.put(layout.sentinel_key(name), [render_sentinel(Sentinel(name[5:29], 40, 1, "/x", (), facts))])


@pytest.fixture(scope="module")
def google(_server_root):
    """Where Google's tokens come from, and key files that wal-e's user may read."""
    directory = Path(tempfile.mkdtemp(prefix="g", dir=_server_root))
    with gcs_token.running(directory) as tokens:
        for account in ("owner", "reader", "writer", "nobody", "expired"):
            tokens.key_file(account)
        give_to_server_user(directory)
        yield tokens
    shutil.rmtree(directory)


class Place:
    """Where a standby asks from, and runs of wal-e there."""

    def __init__(self, server) -> None:
        self.wal = server.make_directory("pg_wal")
        (self.wal / NEW).write_bytes(build_wal.build_segment(NEW))
        self.signal = server.directory / "standby.signal"
        self.signal.touch()
        give_to_server_user(server.directory)
        self.script = Watched(server)

    def run(self, verb, environ):
        """Run a verb, which must end in time and show no secret; return the result and its records."""
        began = time.monotonic()
        debug = {"WALE_LOG_LEVEL": "debug"} if verb.startswith("wal-") else {}
        times = {**TIMES, **environ}
        result = self.script(*VERBS[verb], env={**debug, **times})
        assert time.monotonic() - began < 3 * float(times["WALE_FETCH_DEADLINE"]) + 30
        for secret in filter(None, (*secrets_of(environ), "AUTH_tk", "Bearer")):
            assert secret not in result.stdout + result.stderr, (secret, result)
        return result, records(result.stderr)

    def refused(self, verb, environ, error, words):
        """Run a verb that must fail with this error, having changed nothing here."""
        with unchanged(self.wal):
            result, logged = self.run(verb, environ)
        errors = [record for record in logged if record.level == "ERROR"]
        assert [record.error for record in errors] == [error], result
        for word in words:
            assert word in errors[0].text, (word, errors[0])
        assert result.returncode == self.expected(verb, error), result

    def expected(self, verb, error):
        if not verb.startswith("wal-fetch"):
            return STATUS.get(error, 1)
        return 75 if error == "StoreUnavailable" and self.signal.exists() else 200


@pytest.fixture
def place(make_place):
    return Place(make_place())


def at_once(attempts: list[Callable[[], None]]) -> None:
    """Make the attempts, some at the same time."""
    with ThreadPoolExecutor(3) as executor:
        for done in [executor.submit(attempt) for attempt in attempts]:
            done.result()


def secrets_of(environ):
    """Every secret among the variables, in each form that it is written in."""
    for name, value in environ.items():
        if name in CREDENTIALS:
            yield value
        elif name == "GOOGLE_APPLICATION_CREDENTIALS" and Path(value).exists():
            yield json.loads(Path(value).read_text())["private_key"].splitlines()[1]
        elif name == "AZURE_STORAGE_CONNECTION_STRING":
            for found in re.findall(r"(?:AccountKey=|[?&]sig=)([^;&]+)", value):
                yield from {found, unquote(found)}


# What is done to the variables.


def other_place(stock: Stock, port: int) -> dict[str, str]:
    """A bucket or container that is not there."""
    return {name: value.replace(stock.container, "nowhere-at-all") for name, value in stock.network.environ_at(port).items() if name.endswith("_PREFIX")}


def setting(**variables: str) -> Callable[[Stock, int], dict[str, str]]:
    return lambda stock, port: variables


def s3_user(*actions: str) -> Callable[[Stock, int], dict[str, str]]:
    """A user of S3 who may do what is named, and nothing else."""
    return lambda stock, port: _s3_user(stock.container, actions)


@functools.cache
def _s3_user(bucket: str, actions: tuple[str, ...]) -> dict[str, str]:
    name = f"somebody-{next(_users)}"
    fix_s3.server(versity).add_user(name, "a-secret-of-somebody")
    statements = [
        {"Effect": "Allow", "Principal": {"AWS": [name]}, "Action": [f"s3:{action}"], "Resource": f"arn:aws:s3:::{bucket}{'' if 'Bucket' in action else '/*'}"}
        for action in actions
    ]
    fix_s3.admin(versity).put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))
    return {"AWS_ACCESS_KEY_ID": name, "AWS_SECRET_ACCESS_KEY": "a-secret-of-somebody"}


_users = itertools.count(1)


def google_account(name: str) -> Callable[[Stock, int], dict[str, str]]:
    """An account of Google, by its key file: the fixture puts the place in."""
    return lambda stock, port: {"STORAGE_EMULATOR_HOST": "", "API_ENDPOINT_OVERRIDE": f"http://127.0.0.1:{port}", "GOOGLE_APPLICATION_CREDENTIALS": name}


def azure_parts(**parts: str) -> Callable[[Stock, int], dict[str, str]]:
    """A connection string with other parts than the right ones."""

    def changes(stock: Stock, port: int) -> dict[str, str]:
        account = parts.get("AccountName", azure_server().account)
        right = {"AccountName": account, "AccountKey": azure_server().key, "BlobEndpoint": f"http://127.0.0.1:{port}/{account}"}
        return {"AZURE_STORAGE_CONNECTION_STRING": ";".join(f"{name}={value}" for name, value in {**right, **parts}.items())}

    return changes


def azure_signature(permission: str, expires: timedelta = timedelta(hours=1)) -> Callable[[Stock, int], dict[str, str]]:
    """A shared access signature for the container, with these permissions."""

    def changes(stock: Stock, port: int) -> dict[str, str]:
        server, now = azure_server(), datetime.now(UTC)
        rights = ContainerSasPermissions.from_string(permission)
        token = generate_container_sas(server.account, stock.container, server.key, permission=rights, start=now - timedelta(days=1), expiry=now + expires)
        endpoint = f"http://127.0.0.1:{port}/{server.account}"
        return {"AZURE_STORAGE_CONNECTION_STRING": f"BlobEndpoint={endpoint};SharedAccessSignature={token}"}

    return changes


def swift_reader(stock: Stock, port: int) -> dict[str, str]:
    return {"SWIFT_USER": swift_server().reader, "SWIFT_PASSWORD": swift_server().reader_key}


# What is done to the answers.


def s3_answer(status: int, code: str, message: str = "No words.", headers: dict[str, str] | None = None, path: str = "", **others: str):
    return lambda: [Rule(Answer(status, fix_s3.document(code, message, **others), {"Content-Type": "application/xml", **(headers or {})}), path=path)]


def azure_answer(status: int, code: str, message: str, headers: dict[str, str] | None = None, detail: str = ""):
    rest = f"<AuthenticationErrorDetail>{detail}</AuthenticationErrorDetail>" if detail else ""
    document = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}\nRequestId:1\nTime:2</Message>{rest}</Error>'.encode()
    return lambda: [Rule(Answer(status, document, {"Content-Type": "application/xml", "x-ms-error-code": code, **(headers or {})}))]


def google_answer(status: int, reason: str, message: str, path: str = ""):
    document = {"error": {"code": status, "message": message, "errors": [{"domain": "global", "reason": reason, "message": message}]}}
    return lambda: [Rule(Answer(status, json.dumps(document).encode(), {"Content-Type": "application/json"}), path=path)]


def an_hour_ago() -> str:
    return format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)


def s3_skew():
    return s3_answer(403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.", {"Date": an_hour_ago()})()


def azure_skew():
    return azure_answer(403, "AuthenticationFailed", "Server failed to authenticate the request.", {"Date": an_hour_ago()})()


FETCH, PUSH, LIST, DELETE = "wal-fetch", "wal-push", "backup-list", "delete"
WRONG, FORBIDDEN = "StoreMisconfigured", "StoreForbidden"
S3, GCS, AZURE, SWIFT = "s3", "gcs", "azure", "swift"
ALL = f"{FETCH} {PUSH} {LIST}"

CASES = (
    Case(S3, "wrong secret", WRONG, ("credentials", "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"), ALL,
         changes=setting(AWS_SECRET_ACCESS_KEY="not-it-at-all")),
    Case(S3, "unknown key id", WRONG, ("credentials", "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"), changes=setting(AWS_ACCESS_KEY_ID="nobody-knows-me")),
    Case(S3, "no credentials", WRONG, ("no credentials", "AWS_PROFILE"), changes=setting(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")),
    Case(S3, "redirected to its region", WRONG, ("{container}", "eu-central-1", "AWS_REGION=eu-central-1"), ALL,
         rules=s3_answer(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-central-1"}, Endpoint="s3.eu-central-1.amazonaws.com")),
    Case(S3, "signed for another region", WRONG, ("{container}", "eu-central-1", "AWS_REGION=eu-central-1"),
         rules=s3_answer(400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'eu-central-1'", Region="eu-central-1")),
    Case(S3, "no bucket", WRONG, ("there is no bucket nowhere-at-all", "Create it"), ALL, changes=other_place),
    Case(S3, "expired token", WRONG, ("session token", "expired", "ExpiredToken", "new temporary credentials"),
         changes=setting(AWS_SESSION_TOKEN="a-token-of-the-past"),
         rules=s3_answer(400, "ExpiredToken", "The provided token has expired.", **{"Token-0": "a-token-of-the-past"})),
    Case(S3, "wrong secret of a token", WRONG, ("credentials", "SignatureDoesNotMatch"), changes=setting(AWS_SESSION_TOKEN="a-token-of-somebody"),
         rules=s3_answer(403, "SignatureDoesNotMatch", StringToSign="AWS4-HMAC-SHA256", CanonicalRequest="GET x-amz-security-token:a-token-of-somebody")),
    Case(S3, "other clock", WRONG, ("clock", "60 minutes ahead", "NTP"), rules=s3_skew),
    Case(S3, "no right at all", FORBIDDEN, ("not allowed to read", "{container}", "s3:GetObject"), FETCH, changes=s3_user("GetBucketAcl")),
    Case(S3, "no right to read an absent key", FORBIDDEN, ("not allowed to read", "s3:ListBucket"), "wal-fetch-absent",
         rules=s3_answer(403, "AccessDenied", "Access Denied", path=ABSENT)),
    Case(S3, "no right to write", FORBIDDEN, ("not allowed to write", NEW, "s3:PutObject"), PUSH, FETCH, s3_user("GetObject", "ListBucket")),
    Case(S3, "no right to list", FORBIDDEN, ("not allowed to list", "{container}", "s3:ListBucket"), LIST, FETCH, s3_user("GetObject", "PutObject")),
    Case(S3, "no right to delete", FORBIDDEN, (BACKUPS[0], "not allowed to delete", "s3:DeleteObject"), DELETE, LIST,
         s3_user("GetObject", "PutObject", "ListBucket")),
    Case(S3, "frozen", "BlobFrozen", (FROZEN, "GLACIER", "restore-object"), "wal-fetch-frozen", FETCH,
         rules=s3_answer(403, "InvalidObjectState", "The operation is not valid for the object's storage class", path=FROZEN, StorageClass="GLACIER")),
    Case(GCS, "wrong secret", WRONG, ("credentials", "token", "Invalid JWT Signature", "new key"), ALL, changes=google_account("wrong-secret")),
    Case(GCS, "unknown account", WRONG, ("credentials", "token", "account not found"), changes=google_account("unknown")),
    Case(GCS, "other clock", WRONG, ("this machine's clock is wrong", "NTP"), changes=google_account("other-clock")),
    Case(GCS, "no key file", WRONG, ("no usable Google credentials", "nothing.json", "GOOGLE_APPLICATION_CREDENTIALS"), changes=google_account("nothing")),
    Case(GCS, "no bucket", WRONG, ("bucket", "gs://nowhere-at-all/pg/main", "does not exist"), ALL, changes=other_place),
    Case(GCS, "expired token", WRONG, ("credentials are not accepted", "Invalid Credentials"), changes=google_account("expired")),
    Case(GCS, "no right at all", FORBIDDEN, ("not allowed to list", "{container}", "storage.objects.list"), changes=google_account("nobody")),
    Case(GCS, "no right to read", FORBIDDEN, ("not allowed to read", STORED, "storage.objects.get"), FETCH, LIST,
         rules=google_answer(403, "forbidden", "no access", f"wal_005%2F{STORED}")),
    Case(GCS, "no right to write", FORBIDDEN, ("not allowed to write", NEW, "storage.objects.create"), PUSH, FETCH, google_account("reader")),
    Case(GCS, "no right to list", FORBIDDEN, ("not allowed to list", "{container}", "storage.objects.list"), LIST, changes=google_account("writer")),
    Case(GCS, "no right to delete", FORBIDDEN, (BACKUPS[0], "not allowed to delete", "storage.objects.delete"), DELETE, LIST,
         rules=google_answer(403, "forbidden", "no access", "^/batch")),
    Case(AZURE, "wrong secret", WRONG, ("credentials", "devstoreaccount1", "key"), ALL, changes=azure_parts(AccountKey="bm90LWl0LWF0LWFsbA==")),
    Case(AZURE, "unknown account", WRONG, ("nobodysaccount",), changes=azure_parts(AccountName="nobodysaccount")),
    Case(AZURE, "no container", WRONG, ("there is no container nowhere-at-all", "Create it"), ALL, changes=other_place),
    Case(AZURE, "expired signature", WRONG, ("credentials", "Make a new shared access signature", "times"), ALL,
         changes=azure_signature("racwdl", -timedelta(hours=1))),
    Case(AZURE, "signature that Azure calls expired", WRONG, ("signature has expired", "Make a new"), f"{FETCH} {LIST}", changes=azure_signature("racwdl"),
         rules=azure_answer(403, "AuthenticationFailed", "Server failed to authenticate the request.",
                            detail="Signature not valid in the specified time frame: Start [Sat] - Expiry [Sun] - Current [Mon]")),
    Case(AZURE, "other clock", WRONG, ("clock", "ahead", "NTP"), rules=azure_skew),
    Case(AZURE, "no right to read", FORBIDDEN, ("read", "{container}", "permissions"), FETCH, changes=azure_signature("l")),
    Case(AZURE, "no right to write", FORBIDDEN, ("create", NEW, "permissions"), PUSH, FETCH, azure_signature("rl")),
    Case(AZURE, "no right to list", FORBIDDEN, ("list", "{container}", "permissions"), LIST, FETCH, azure_signature("rcw")),
    Case(AZURE, "no right to delete", FORBIDDEN, (BACKUPS[0], "permissions"), DELETE, LIST, azure_signature("rcwl")),
    Case(AZURE, "frozen", "BlobFrozen", (FROZEN, "archive tier", "set-tier"), "wal-fetch-frozen", FETCH),
    Case(SWIFT, "wrong password", WRONG, ("password", "SWIFT_PASSWORD"), ALL, changes=setting(SWIFT_PASSWORD="not-it-at-all")),
    Case(SWIFT, "unknown user", WRONG, ("user", "SWIFT_USER"), changes=setting(SWIFT_USER="test:nobody")),
    Case(SWIFT, "no container", WRONG, ("there is no Swift container nowhere-at-all", "swift post nowhere-at-all"), ALL, changes=other_place),
    Case(SWIFT, "no right at all", FORBIDDEN, ("not allow", "{container}", "SWIFT_USER"), changes=swift_reader),
    Case(SWIFT, "no right to write", FORBIDDEN, ("not allow to write", NEW, "access list"), PUSH, f"{FETCH} {LIST}", swift_reader,
         place="test:reader,.rlistings"),
    Case(SWIFT, "no right to delete", FORBIDDEN, ("not allow", BACKUPS[0], "access list"), DELETE, LIST, swift_reader, place="test:reader,.rlistings"),
    Case(SWIFT, "no right to list", FORBIDDEN, ("not allow to list", "{container}", "access list"), LIST, changes=swift_reader, place=".r:*"),
)  # fmt: skip


@pytest.fixture
def token_answers(google):
    """Key files whose tokens are refused, and the proxy that refuses them."""
    answers = {
        "wrong-secret": "Invalid JWT Signature.",
        "unknown": "Invalid grant: account not found",
        "other-clock": "Invalid JWT: Token must be a short-lived token and in a reasonable timeframe. Check your iat and exp values in the JWT claim.",
    }
    content = json.loads((google.directory / "owner.json").read_text())
    with FaultProxy(google.port) as proxy:
        for name, words in answers.items():
            document = json.dumps({"error": "invalid_grant", "error_description": words}).encode()
            proxy.add(Rule(Answer(400, document, {"Content-Type": "application/json"}), path=f"/{name}"))
            path = google.directory / f"{name}.json"
            path.write_text(json.dumps({**content, "token_uri": f"{proxy.url}/{name}"}))
        give_to_server_user(google.directory)
        yield


@pytest.fixture
def frozen_segment():
    """A segment in Azure's archive tier."""
    stock = stocked(AZURE, "")
    container = ContainerClient.from_connection_string(azure_server().connection_string, stock.container)
    container.get_blob_client(f"pg/main/{layout.wal_key(FROZEN, '.lzo')}").set_standard_blob_tier("Archive")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_each_trouble_has_its_own_error_at_once(case, make_place, google, request):
    if case.store == GCS:
        request.getfixturevalue("token_answers")
    if case.id == "azure-frozen":
        request.getfixturevalue("frozen_segment")
    stock = stocked(case.store, case.place)
    held = stock.network.objects()
    words = [word.format(container=stock.container) for word in case.words]

    def attempt(verb, proxy, place, environ):
        if verb in case.works.split():
            result, _ = place.run(verb, environ)
            assert result.returncode == 0, result
        else:
            place.refused(verb, environ, case.error, words)
            asked = Counter((record.method, record.path) for record in proxy.log)
            assert max(asked.values(), default=0) <= 3, asked  # what will not change is not asked for again, but with a new token
            assert len(proxy.log) <= 9 or verb == DELETE, asked

    with contextlib.ExitStack() as proxies:
        attempts = []
        for verb in f"{case.verbs} {case.works}".split():
            proxy = proxies.enter_context(FaultProxy(stock.network.port))
            proxy.add(*case.rules())
            environ = {**stock.network.environ_at(proxy.port), **case.changes(stock, proxy.port)}
            if "GOOGLE_APPLICATION_CREDENTIALS" in environ:
                environ["GOOGLE_APPLICATION_CREDENTIALS"] = str(google.directory / f"{environ['GOOGLE_APPLICATION_CREDENTIALS']}.json")
            attempts.append(functools.partial(attempt, verb, proxy, Place(make_place()), environ))
        at_once(attempts)
    assert stock.network.objects() == held
    assert stock.network.unfinished() == 0


# Trouble of the network.


def elsewhere(store: str, host: str, port: int) -> dict[str, str]:
    """The variables of a store at another host and port; the place itself is not needed."""
    environ = stocked(store, "").network.environ_at(port)
    return {name: value.replace(f"127.0.0.1:{port}", f"{host}:{port}") for name, value in environ.items()}


def all_refused(make_place, environ, words, verbs=ALL):
    """Try verbs that must all fail for a time."""
    at_once([functools.partial(Place(make_place()).refused, verb, {**SHORT, **environ}, "StoreUnavailable", words) for verb in verbs.split()])


@pytest.mark.parametrize("store", NETWORKS)
def test_a_port_that_refuses_is_temporary_trouble(store, make_place):
    all_refused(make_place, elsewhere(store, "127.0.0.1", free_port()), ("efused",))


@pytest.mark.parametrize("store", NETWORKS)
def test_a_recovering_server_that_is_no_standby_is_stopped_by_temporary_trouble(store, place):
    place.signal.unlink()
    place.refused(FETCH, {**SHORT, **elsewhere(store, "127.0.0.1", free_port())}, "StoreUnavailable", ("efused",))


@pytest.mark.parametrize("store", NETWORKS)
def test_a_server_that_never_answers_is_given_up_at_the_deadline(store, make_place):
    stock = stocked(store, "")
    with FaultProxy(stock.network.port) as proxy:
        proxy.add(Rule(Stall()))
        all_refused(make_place, stock.network.environ_at(proxy.port), ("time",))
        assert proxy.connections >= 3


@pytest.mark.parametrize("store", NETWORKS)
def test_a_server_that_takes_no_connection_is_given_up_at_the_deadline(store, make_place):
    with contextlib.ExitStack() as sockets:
        deaf = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(2):  # its queue is full with them
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        all_refused(make_place, elsewhere(store, "127.0.0.1", deaf.getsockname()[1]), ("time",))


@pytest.mark.parametrize("store", NETWORKS)
def test_a_host_without_an_address_is_temporary_trouble(store, make_place):
    said = "Name or service not known"
    all_refused(make_place, elsewhere(store, UNRESOLVED, 80), (said,), f"{FETCH} {LIST}")


def test_a_token_of_swift_that_has_expired_is_renewed_in_silence(place):
    stock = stocked(SWIFT, "")
    with FaultProxy(stock.network.port) as proxy:
        proxy.add(Rule(Answer(401), path=STORED, limit=1))
        result, logged = place.run(FETCH, stock.network.environ_at(proxy.port))
        assert [record.path for record in proxy.log].count("/auth/v1.0") == 2
    assert result.returncode == 0
    assert not [record for record in logged if record.level in ("ERROR", "WARNING")]


# A library that is not there.

LIBRARIES = {S3: ("botocore", "aws"), GCS: ("google", "google"), AZURE: ("azure", "azure"), SWIFT: ("swiftclient", "swift")}


@pytest.mark.parametrize("store", NETWORKS)
def test_a_missing_library_is_named_with_the_extra_that_has_it(store, place):
    library, extra = LIBRARIES[store]
    hidden = place.wal.parent / "hidden" / library
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text(f"raise ModuleNotFoundError('No module named {library}', name='{library}')\n")
    give_to_server_user(place.wal.parent)
    environ = {**elsewhere(store, "127.0.0.1", free_port()), "PYTHONPATH": str(hidden.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    for verb in (FETCH, PUSH):
        place.refused(verb, environ, "ConfigurationError", (library, f'pip install "wal-e[{extra}]"'))


# Absence is said when it is the truth.


@pytest.mark.parametrize("store", NETWORKS)
def test_a_segment_that_is_not_there_is_absent(store, place):
    with unchanged(place.wal):
        result, logged = place.run("wal-fetch-absent", stocked(store, "").network.environ)
    assert result.returncode == 1
    assert not [record for record in logged if record.level in ("ERROR", "WARNING")]
    assert any(ABSENT in record.message for record in logged)


@pytest.mark.parametrize("store", NETWORKS)
def test_nothing_is_absent_from_a_prefix_that_holds_no_wal(store, place):
    environ = stocked(store, "").network.environ
    empty = {name: value.replace("/pg/main", "/pg/other") for name, value in environ.items() if name.endswith("_PREFIX")}
    place.refused(FETCH, {**environ, **empty}, "StoreUnavailable", ("no WAL at all", "/pg/other"))
    place.signal.unlink()
    place.refused(FETCH, {**environ, **empty}, "StoreUnavailable", ("no WAL at all", "/pg/other"))
