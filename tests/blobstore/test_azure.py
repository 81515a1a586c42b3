"""What is special to Azure: its errors, its blocks, its credentials. What it shares with the others is in test_contract.py."""

import contextlib
import datetime as dt
import email.utils
import http.server
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
import threading
import tracemalloc

import pytest
from azure.core.exceptions import ClientAuthenticationError
from azure.storage.blob import ContainerSasPermissions, StandardBlobTier, generate_container_sas
from fault_proxy import FaultProxy
from fault_rules import Answer, Corrupt, Cut, LoseAnswer, Rule, Slow, Stall
from fix_azure import azure_container, azure_server, azure_settings

from wal_e.blobstore.azure.service import AzureService
from wal_e.blobstore.registry import open_store
from wal_e.blobstore.service import CREATE, PUT, Part, UploadLost, Whole
from wal_e.blobstore.url import parse_store_url
from wal_e.errors import (
    BlobExists,
    BlobFrozen,
    BlobNotFound,
    ConfigurationError,
    DamageError,
    StoreError,
    StoreForbidden,
    StoreMisconfigured,
    StoreUnavailable,
)
from wal_e.settings import Settings

MIB = 1 << 20
OTHER_KEY = "b3RoZXIga2V5IG90aGVyIGtleSBvdGhlciBrZXkhIQ=="
QUICK = {"WALE_CONNECT_TIMEOUT": "0.5", "WALE_READ_TIMEOUT": "0.5", "WALE_FETCH_DEADLINE": "5", "WALE_PUSH_DEADLINE": "20"}


@pytest.fixture
def container():
    return azure_container()


@pytest.fixture
def prefix(container):
    return f"wabs://{container.container_name}/pg"


@pytest.fixture
def proxy():
    with FaultProxy(azure_server().port) as proxy:
        yield proxy


def service(prefix, settings=None):
    return AzureService(parse_store_url(prefix), settings or azure_settings(prefix), 4)


def behind(proxy, prefix, **more):
    """Settings that lead through the proxy."""
    server = azure_server()
    return azure_settings(prefix, AZURE_STORAGE_CONNECTION_STRING=server.connection_string.replace(f":{server.port}/", f":{proxy.port}/"), **more)


def with_signature(prefix, signature):
    return azure_settings(prefix, AZURE_STORAGE_CONNECTION_STRING=f"BlobEndpoint={azure_server().url};SharedAccessSignature={signature}")


def signature(container, permissions, hours=1):
    server = azure_server()
    now = dt.datetime.now(dt.UTC)
    permission = ContainerSasPermissions.from_string(permissions)
    return generate_container_sas(
        server.account,
        container.container_name,
        account_key=server.key,
        permission=permission,
        start=now - dt.timedelta(hours=2),
        expiry=now + dt.timedelta(hours=hours),
    )


def operations(store):
    """Each request that a service makes, by its name in messages."""
    return {
        "read": [lambda: store.open("dir/key", 0, None, None), lambda: store.open("dir/key", 5, 2, None), lambda: store.stat("dir/key")],
        "create": [lambda: store.write("dir/new", b"1", 0, CREATE)],
        "write": [lambda: store.write("dir/key", b"1", 0, PUT), lambda: store.begin("dir/key", PUT).send(Part(0, 0, b"1", False))],
        "list": [lambda: store.page("dir/", None), lambda: list(store.leftovers())],
        "delete": [lambda: first_refusal(store.delete(["dir/key", "dir/other"]))],
    }


def first_refusal(refusals):
    raise next(iter(refusals.values()))


def content(store, key, **part):
    return b"".join(store.get(key, **part))


def stream(size, piece=bytes(range(256)) * 4096):
    return (piece for _ in range(size // len(piece)))


def told(error):
    return " ".join((error.message, error.detail, error.hint))


# errors of a real server


def test_a_wrong_key_is_named_and_never_shown(prefix):
    settings = azure_settings(prefix, AZURE_STORAGE_CONNECTION_STRING=azure_server().connection_string.replace(azure_server().key, OTHER_KEY))
    for requests in operations(service(prefix, settings)).values():
        for request in requests:
            with pytest.raises(StoreMisconfigured) as caught:
                request()
            assert not caught.value.transient
            assert "devstoreaccount1" in caught.value.message
            assert "key" in caught.value.hint
            assert OTHER_KEY not in told(caught.value)


def test_a_missing_container_is_never_a_missing_blob():
    for requests in operations(service("wabs://no-such-container/pg", azure_settings(""))).values():
        for request in requests:
            with pytest.raises(StoreMisconfigured, match="no container no-such-container") as caught:
                request()
            assert "ContainerNotFound" in caught.value.detail
            assert "request is" in caught.value.detail


def test_a_missing_blob_is_a_missing_blob(prefix):
    for request in operations(service(prefix))["read"]:
        with pytest.raises(BlobNotFound, match=r"there is no wabs://test-.*/pg/dir/key"):
            request()


@pytest.mark.parametrize(
    ("permissions", "allowed"), [("r", {"read"}), ("rl", {"read", "list"}), ("wc", {"write", "create"}), ("rcwl", {"read", "create", "write", "list"})]
)
def test_what_a_signature_does_not_allow_is_forbidden_and_named(container, prefix, permissions, allowed):
    service(prefix).write("dir/key", b"123456", 0, PUT)
    token = signature(container, permissions)
    for name, requests in operations(service(prefix, with_signature(prefix, "?" + token))).items():
        for request in requests:
            if name in allowed:
                request()
                continue
            with pytest.raises(StoreForbidden) as caught:
                request()
            assert not caught.value.transient
            assert f"{name} {prefix}/dir" in caught.value.message or name == "list"
            assert "AuthorizationPermissionMismatch" in caught.value.detail
            assert "permissions" in caught.value.hint
            assert token.partition("sig=")[2] not in told(caught.value)


def test_an_expired_signature_says_so(container, prefix):
    token = signature(container, "racwdl", hours=-1)
    with pytest.raises(StoreMisconfigured, match="does not accept the credentials") as caught:
        service(prefix, with_signature(prefix, token)).stat("key")
    assert "its times" in caught.value.hint


def test_a_frozen_blob_says_how_to_get_it_back(container, prefix):
    store = open_store(azure_settings(prefix))
    store.put("key", [b"ice"])
    container.get_blob_client("pg/key").set_standard_blob_tier(StandardBlobTier.ARCHIVE)
    with pytest.raises(BlobFrozen) as caught:
        content(store, "key")
    assert "set-tier" in caught.value.hint
    assert store.stat("key").size == 3
    store.delete(["key"])


# errors that only the real service gives

FAILED = "Server failed to authenticate the request."
CANNED = [
    (403, "AuthenticationFailed", FAILED, StoreMisconfigured, "key"),
    (401, "InvalidAuthenticationInfo", "Lifetime validation failed.", StoreMisconfigured, "key"),
    (403, "AuthorizationFailure", "This request is not authorized.", StoreForbidden, "firewall"),
    (403, "AuthorizationSourceIPMismatch", "", StoreForbidden, "addresses"),
    (403, "SomethingNew", "", StoreForbidden, ""),
    (403, "AccountIsDisabled", "The specified account is disabled.", StoreMisconfigured, "portal"),
    (403, "KeyBasedAuthenticationNotPermitted", "", StoreMisconfigured, "shared key"),
    (409, "ContainerBeingDeleted", "", StoreMisconfigured, "container"),
    (400, "InvalidResourceName", "", StoreMisconfigured, "small letters"),
    (409, "BlobBeingRehydrated", "", BlobFrozen, "wait"),
    (409, "BlobImmutableDueToPolicy", "", StoreForbidden, "immutability policy"),
    (412, "LeaseIdMissing", "", StoreForbidden, "lease"),
    (409, "SnapshotsPresent", "", StoreForbidden, "snapshots"),
    (400, "Md5Mismatch", "", StoreUnavailable, ""),
    (408, "", "", StoreUnavailable, ""),
    (429, "", "", StoreUnavailable, ""),
    (500, "InternalError", "", StoreUnavailable, ""),
    (500, "OperationTimedOut", "", StoreUnavailable, ""),
    (503, "ServerBusy", "The server is busy.", StoreUnavailable, ""),
    (404, "", "", StoreError, "proxy"),
    (400, "InvalidQueryParameterValue", "", StoreError, ""),
]


@pytest.mark.parametrize(("status", "code", "message", "kind", "hint"), CANNED)
@pytest.mark.parametrize("name", ["read", "write", "list", "delete"])
def test_each_answer_has_its_error(prefix, proxy, name, status, code, message, kind, hint):
    document = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}\nRequestId:1\nTime:2</Message></Error>" if code else ""
    headers = {"Content-Type": "application/xml", "x-ms-request-id": "number-7"} | ({"x-ms-error-code": code} if code else {})
    proxy.add(Rule(Answer(status, document.encode(), headers)))
    for request in operations(service(prefix, behind(proxy, prefix)))[name]:
        with pytest.raises(StoreError) as caught:
            request()
        assert type(caught.value) is kind
        assert caught.value.transient == (kind is StoreUnavailable)
        assert hint in caught.value.hint
        assert f"{status} {code}".strip() in caught.value.detail
        assert "number-7" in caught.value.detail
        assert "\n" not in caught.value.detail


def test_a_wrong_clock_is_told_from_a_wrong_key(prefix, proxy):
    early = email.utils.format_datetime(dt.datetime.now(dt.UTC) - dt.timedelta(hours=1))
    proxy.add(Rule(Answer(403, b"", {"x-ms-error-code": "AuthenticationFailed", "Date": early})))
    with pytest.raises(StoreMisconfigured) as caught:
        service(prefix, behind(proxy, prefix)).stat("key")
    assert "36" in caught.value.detail
    assert "ahead of" in caught.value.detail
    assert "clock" in caught.value.hint


@pytest.mark.parametrize(
    ("status", "code"), [(409, "BlobAlreadyExists"), (412, "ConditionNotMet"), (403, "UnauthorizedBlobOverwrite"), (409, "BlobImmutableDueToPolicy")]
)
def test_however_it_is_put_a_taken_key_is_a_taken_key(prefix, proxy, status, code):
    proxy.add(Rule(Answer(status, b"", {"x-ms-error-code": code}), method="PUT"))
    with pytest.raises(BlobExists):
        service(prefix, behind(proxy, prefix)).write("key", b"1", 0, CREATE)


@pytest.mark.parametrize("status", [429, 503])
def test_the_wait_that_azure_asks_for_is_handed_on(prefix, proxy, status):
    proxy.add(Rule(Answer(status, headers={"Retry-After": "7"})))
    for requests in operations(service(prefix, behind(proxy, prefix))).values():
        with pytest.raises(StoreUnavailable) as caught:
            requests[0]()
        assert caught.value.wait_s == 7


def test_one_key_that_cannot_be_deleted_is_named(container, prefix):
    store = open_store(azure_settings(prefix))
    for key in ("dir/a", "dir/b", "dir/c"):
        store.put(key, [b"1"])
    container.get_blob_client("pg/dir/b").acquire_lease()
    with pytest.raises(StoreForbidden) as caught:
        store.delete(["dir/a", "dir/b", "dir/c"])
    assert "dir/b" in caught.value.detail
    assert "lease" in caught.value.hint
    assert [blob.key for blob in store.list()] == ["dir/b"]


# trouble on the way


def test_nobody_at_the_address_is_transient(prefix, proxy):
    settings = behind(proxy, prefix, **QUICK)
    with proxy.refusing():
        for requests in operations(service(prefix, settings)).values():
            with pytest.raises(StoreUnavailable, match="connection to Azure failed") as caught:
                requests[0]()
            assert "refused" in caught.value.detail


def test_silence_is_transient(prefix, proxy):
    proxy.add(Rule(Stall()))
    for requests in operations(service(prefix, behind(proxy, prefix, **QUICK))).values():
        with pytest.raises(StoreUnavailable, match="connection to Azure failed") as caught:
            requests[0]()
        assert "timed out" in caught.value.detail


def test_a_stale_connection_is_worth_another_try_at_once(prefix, proxy):
    proxy.add(Rule(LoseAnswer()))
    for requests in operations(service(prefix, behind(proxy, prefix))).values():
        with pytest.raises(StoreUnavailable) as caught:
            requests[0]()
        assert caught.value.wait_s == 0


def test_an_account_without_an_address_may_be_a_wrong_name(monkeypatch):
    def nobody(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    store = service("wabs://cont/pg", Settings({"WABS_ACCOUNT_NAME": "mistyped", "WABS_ACCESS_KEY": OTHER_KEY}))
    with pytest.raises(StoreUnavailable, match="the Azure account mistyped has no address") as caught:
        store.stat("key")
    assert "name" in caught.value.hint


def test_a_certificate_that_nobody_signed_is_not_transient(tmp_path, prefix):
    with tls_server(tmp_path) as port:
        settings = azure_settings(prefix, AZURE_STORAGE_CONNECTION_STRING=f"AccountName=acct;AccountKey={OTHER_KEY};BlobEndpoint=https://127.0.0.1:{port}/acct")
        with pytest.raises(StoreMisconfigured, match="certificate") as caught:
            service(prefix, settings).stat("key")
    assert not caught.value.transient
    assert "REQUESTS_CA_BUNDLE" in caught.value.hint


@contextlib.contextmanager
def tls_server(directory):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    pem = directory / "server.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("size", [1, 3 * MIB])
@pytest.mark.parametrize("verb", ["put", "create"])
def test_a_write_whose_answer_is_lost_ends_well(prefix, proxy, verb, size):
    store = open_store(behind(proxy, prefix))
    lost = Rule(LoseAnswer(), method="PUT", limit=1)
    proxy.add(lost)
    data = os.urandom(size)
    assert getattr(store, verb)("key", [data]) == size
    assert lost.applied == 1
    assert content(store, "key") == data


@pytest.mark.parametrize("verb", ["put", "create"])
def test_lost_answers_of_parts_and_of_their_commit_end_well_without_reading_the_blob(prefix, proxy, verb):
    store = open_store(behind(proxy, prefix))
    part, commit = Rule(LoseAnswer(), method="PUT", path="comp=block&", limit=2), Rule(LoseAnswer(), method="PUT", path="comp=blocklist", limit=2)
    proxy.add(part, commit)
    data = os.urandom(20 * MIB)
    assert getattr(store, verb)("key", [data]) == len(data)
    assert (part.applied, commit.applied) == (2, 2)
    assert not any(record.method == "GET" and record.path.endswith("/pg/key") for record in proxy.log)
    assert content(store, "key") == data
    with pytest.raises(BlobExists):
        store.create("key", [data])


def test_throttling_and_errors_are_waited_out(prefix, proxy):
    proxy.add(Rule(Answer(503, headers={"x-ms-error-code": "ServerBusy"}), every=3), Rule(Answer(500), every=7))
    store = open_store(behind(proxy, prefix))
    data = os.urandom(20 * MIB)
    store.create("key", [data])
    assert content(store, "key") == data
    assert [blob.size for blob in store.list()] == [20 * MIB]
    store.delete(["key"])
    assert list(store.list()) == []


def test_a_body_that_was_changed_on_its_way_up_is_sent_again(prefix, proxy):
    rule = Rule(Corrupt(at=1000, of="request"), method="PUT", path="/pg/", every=2)
    store = open_store(behind(proxy, prefix))
    store.put("first", [b"1"])
    proxy.add(rule)
    for key, size in (("small", 5000), ("smaller", 4000), ("big", 20 * MIB)):
        data = os.urandom(size)
        store.create(key, [data])
        assert content(store, key) == data
    assert rule.applied >= 2


def test_a_small_blob_that_was_changed_on_its_way_down_is_fetched_again(prefix, proxy):
    store = open_store(behind(proxy, prefix))
    store.put("key", [b"content"])
    rule = Rule(Corrupt(at=3), method="GET", limit=1)
    proxy.add(rule)
    assert content(store, "key") == b"content"
    assert rule.applied == 1


def test_a_large_blob_that_was_changed_on_its_way_down_is_damaged(prefix, proxy):
    store = open_store(behind(proxy, prefix))
    store.put("key", stream(20 * MIB))
    proxy.add(Rule(Corrupt(at=5 * MIB), method="GET", path="/pg/key"))
    with pytest.raises(DamageError):
        content(store, "key")


def test_a_download_that_is_cut_goes_on_where_it_stopped_in_the_same_version(prefix, proxy):
    store = open_store(behind(proxy, prefix))
    data = os.urandom(6 * MIB)
    store.put("key", [data])
    proxy.clear()
    proxy.add(Rule(Cut(2 * MIB, how="fin"), method="GET", limit=2))
    assert content(store, "key") == data
    assert len([record for record in proxy.log if record.method == "GET"]) == 3
    assert sum(record.bytes_out for record in proxy.log) < 7 * MIB


def test_a_download_that_is_cut_does_not_go_on_in_another_version(prefix, proxy):
    store = open_store(behind(proxy, prefix))
    store.put("key", [b"a" * 3 * MIB])
    proxy.add(Rule(Cut(2 * MIB, how="fin"), method="GET", limit=1))
    chunks = store.get("key")
    next(chunks)
    open_store(azure_settings(prefix)).put("key", [b"b" * 3 * MIB])
    with pytest.raises(StoreError, match="was replaced while it was read"):
        list(chunks)


def test_a_version_is_asked_for_past_the_end_too(prefix):
    store = service(prefix)
    store.write("key", b"123", 0, PUT)
    version = store.open("key", 0, None, None).version
    opened = store.open("key", 3, None, version)
    assert (opened.version, opened.size, list(opened.chunks)) == (version, 3, [])
    store.write("key", b"456", 0, PUT)
    for start in (0, 3):
        with pytest.raises(StoreError, match="was replaced"):
            store.open("key", start, None, version)


# streams


def test_a_download_is_one_request_and_its_first_bytes_do_not_wait_for_the_rest(prefix, proxy):
    store = open_store(behind(proxy, prefix))
    store.put("key", stream(20 * MIB))
    proxy.clear()
    stall = Stall(after=5 * MIB)
    proxy.add(Rule(stall, method="GET"))
    chunks = store.get("key")
    came = 0
    while came < 5 * MIB:
        chunk = next(chunks)
        assert 0 < len(chunk) <= MIB
        came += len(chunk)
    stall.released.set()
    assert came + sum(map(len, chunks)) == 20 * MIB
    assert len(proxy.log) == 1


def test_a_download_that_is_given_up_ends_its_connection_and_no_other(prefix, proxy):
    store = service(prefix, behind(proxy, prefix))
    store.write("key", bytes(8 * MIB), 0, PUT)
    given_up = [store.open("key", 0, None, None) for _ in range(3)]
    for _ in range(10):
        given_up.append(store.open("key", 0, None, None))
        next(given_up[-1].chunks)
        for opened in given_up[-4:]:
            opened.chunks.close()
        assert store.stat("key").size == 8 * MIB
    assert proxy.peak_connections <= 5


def test_a_download_that_was_read_to_its_end_leaves_its_connection_to_the_next(prefix, proxy):
    store = open_store(behind(proxy, prefix))
    store.put("key", stream(20 * MIB))
    before = proxy.connections
    for _ in range(3):
        assert len(content(store, "key")) == 20 * MIB
    assert proxy.connections == before


def test_a_slow_line_is_no_reason_to_give_up_a_large_body(prefix, proxy):
    proxy.add(Rule(Slow(8 * MIB), method="PUT"))
    service(prefix, behind(proxy, prefix, **QUICK | {"WALE_READ_TIMEOUT": "30"})).write("key", bytes(16 * MIB), 0, PUT)


def test_a_large_blob_needs_the_memory_of_a_few_parts(prefix):
    store = open_store(azure_settings(prefix))
    tracemalloc.start()
    try:
        store.put("key", stream(160 * MIB))
        for _ in store.get("key"):
            pass
        assert tracemalloc.get_traced_memory()[1] < 90 * MIB
    finally:
        tracemalloc.stop()


def test_types_are_those_of_the_names(container, prefix):
    store = open_store(azure_settings(prefix))
    for key, size in (("a/b.json", 1), ("a/b.txt", 20 * MIB), ("a/b.lzo", 20 * MIB), ("a/json", 1)):
        store.put(key, [bytes(size)])
    types = {blob.name: blob.content_settings.content_type for blob in container.list_blobs()}
    assert types == {
        "pg/a/b.json": "application/json",
        "pg/a/b.txt": "text/plain",
        "pg/a/b.lzo": "application/octet-stream",
        "pg/a/json": "application/octet-stream",
    }


def test_every_blob_carries_its_crc32c(prefix):
    store = service(prefix)
    open_store(azure_settings(prefix)).put("large", stream(20 * MIB))
    store.write("small", b"123456789", 0xE3069283, PUT)
    assert store.open("small", 0, None, None).crc32c == store.open("small", 2, 3, None).crc32c == 0xE3069283
    assert store.open("large", 9, None, None).crc32c is not None


def test_a_backslash_is_refused_for_azure_would_make_it_a_slash(container):
    store = open_store(azure_settings(f"wabs://{container.container_name}"))
    with pytest.raises(StoreError, match="cannot be a name in Azure"):
        store.put("a\\b", [b"1"])
    assert list(store.list()) == []
    with pytest.raises(ConfigurationError, match="backslash"):
        open_store(azure_settings("wabs://cont/a\\b"))


def test_a_container_without_a_path_is_a_prefix(container):
    store = open_store(azure_settings(f"wabs://{container.container_name}/"))
    store.put("wal_005/x", [b"1"])
    assert [blob.name for blob in container.list_blobs()] == ["wal_005/x"]
    assert [blob.key for blob in store.list("wal")] == ["wal_005/x"]
    assert store.url_of("x") == f"wabs://{container.container_name}/x"


def test_directories_of_a_hierarchical_namespace_are_no_blobs(container, prefix):
    container.upload_blob("pg/wal_005", b"", metadata={"hdi_isfolder": "true"})
    store = open_store(azure_settings(prefix))
    store.put("wal_005/x", [b"1"])
    assert [blob.key for blob in store.list()] == ["wal_005/x"]


def test_an_answer_that_is_not_azures_is_an_error(prefix, proxy):
    proxy.add(Rule(Answer(200, b"<html>Please log in</html>", {"Content-Type": "text/html"})))
    with pytest.raises(StoreError, match="could not read"):
        service(prefix, behind(proxy, prefix)).open("key", 0, None, None)


# uploads that end early


def unfinished(store, key="dir/big", verb=PUT):
    upload = store.begin(key, verb)
    upload.send(Part(0, 0, b"a" * MIB, False))
    upload.send(Part(1, MIB, b"b" * 1000, True))
    return upload


WHOLE = Whole(MIB + 1000, 2, 1)


def blocks(container, name):
    return container.get_blob_client(name).get_block_list("uncommitted")[1]


def test_an_aborted_upload_is_invisible_and_takes_up_nothing(container, prefix):
    def chunks():
        yield from stream(40 * MIB)
        raise RuntimeError

    store = open_store(azure_settings(prefix))
    with pytest.raises(RuntimeError):
        store.create("dir/big", chunks())
    assert list(container.list_blobs()) == []
    assert {block.size for block in blocks(container, "pg/dir/big")} == {1}
    assert list(store.leftovers()) == []


def test_what_a_killed_upload_left_is_found_and_discarded_and_its_key_stays_free(container, prefix):
    store = open_store(azure_settings(prefix))
    store.put("dir/empty", [])
    unfinished(service(prefix))
    unfinished(service(f"wabs://{container.container_name}/other"))
    container.get_blob_client("pg/dir/theirs").stage_block("theirs", b"not ours")
    (leftover,) = store.leftovers()
    assert leftover.size == MIB + 1000
    assert f"{prefix}/dir/big" in leftover.description
    assert abs(leftover.started - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)
    store.discard(leftover)
    store.discard(leftover)
    assert list(store.leftovers()) == []
    assert [blob.key for blob in store.list()] == ["dir/empty"]
    assert sum(block.size for block in blocks(container, "pg/dir/theirs")) == len(b"not ours")
    store.create("dir/big", stream(20 * MIB))
    store.discard(leftover)
    assert len(content(store, "dir/big")) == 20 * MIB


@pytest.mark.parametrize("verb", [PUT, CREATE])
def test_an_upload_that_was_discarded_cannot_become_a_blob(prefix, verb):
    store = service(prefix)
    upload = unfinished(store, verb=verb)
    for leftover in list(store.leftovers()):
        store.discard(leftover)
    with pytest.raises(UploadLost):
        upload.complete(WHOLE)
    with pytest.raises(BlobNotFound):
        store.stat("dir/big")


def test_two_uploads_of_one_key_do_not_mix(prefix):
    store = service(prefix)
    first, second = unfinished(store), store.begin("dir/big", PUT)
    second.send(Part(0, 0, b"z" * 10, True))
    second.abort()
    first.complete(WHOLE)
    assert b"".join(store.open("dir/big", 0, None, None).chunks) == b"a" * MIB + b"b" * 1000


@pytest.mark.parametrize(("verb", "error"), [(PUT, UploadLost), (CREATE, BlobExists)])
def test_an_upload_whose_key_was_written_meanwhile_says_so(prefix, verb, error):
    store = service(prefix)
    upload, other = unfinished(store, verb=verb), unfinished(store)
    other.complete(WHOLE._replace(crc32c=7))
    with pytest.raises(error):
        upload.complete(WHOLE)
    upload.abort()
    assert store.open("dir/big", 0, None, None).crc32c == 7


def test_an_upload_whose_blocks_vanish_in_the_last_moment_is_lost(prefix, proxy):
    store = service(prefix, behind(proxy, prefix))
    proxy.add(Rule(Answer(400, b"", {"x-ms-error-code": "InvalidBlockList"}), method="PUT", path="comp=blocklist"))
    with pytest.raises(UploadLost):
        unfinished(store).complete(WHOLE)
    service(prefix).write("dir/big", b"theirs", 0, PUT)
    with pytest.raises(BlobExists):
        unfinished(store, verb=CREATE).complete(WHOLE)


def test_a_commit_that_may_still_come_true_is_not_shrunk(container, prefix, proxy):
    upload = unfinished(service(prefix, behind(proxy, prefix)))
    proxy.add(Rule(Answer(500), method="PUT"))
    with pytest.raises(StoreUnavailable):
        upload.complete(WHOLE)
    proxy.clear()
    upload.abort()
    assert sum(block.size for block in blocks(container, "pg/dir/big")) == MIB + 1000
    upload.complete(WHOLE)
    assert service(prefix).stat("dir/big").size == MIB + 1000


# credentials

KEY = "a2V5IGtleSBrZXkga2V5IGtleSBrZXkga2V5IGtleSE="
SAS = "sv=2025-01-05&sr=c&sp=racwdl&se=2030-01-01T00:00:00Z&sig=c2VjcmV0IHNpZ25hdHVyZSE%3D"
ACCOUNT = {"WABS_ACCOUNT_NAME": "acct"}


@pytest.mark.parametrize(
    ("environ", "kind", "url"),
    [
        (ACCOUNT | {"WABS_ACCESS_KEY": KEY}, "key", "https://acct.blob.core.windows.net/cont"),
        (ACCOUNT | {"WABS_ACCESS_KEY": KEY, "WABS_ENDPOINT_SUFFIX": "core.chinacloudapi.cn"}, "key", "https://acct.blob.core.chinacloudapi.cn/cont"),
        (ACCOUNT | {"WABS_SAS_TOKEN": SAS}, "signature", "https://acct.blob.core.windows.net/cont"),
        (ACCOUNT | {"WABS_SAS_TOKEN": "?" + SAS}, "signature", "https://acct.blob.core.windows.net/cont"),
        (ACCOUNT, "identity", "https://acct.blob.core.windows.net/cont"),
        ({"AZURE_STORAGE_CONNECTION_STRING": f"AccountName=acct;AccountKey={KEY}"}, "key", "https://acct.blob.core.windows.net/cont"),
        (ACCOUNT | {"AZURE_STORAGE_CONNECTION_STRING": f"AccountName=acct;AccountKey={KEY};"}, "key", "https://acct.blob.core.windows.net/cont"),
        ({"AZURE_STORAGE_CONNECTION_STRING": f"BlobEndpoint=https://acct.blob.x.y/;SharedAccessSignature={SAS}"}, "signature", "https://acct.blob.x.y/cont"),
        ({"AZURE_STORAGE_CONNECTION_STRING": "UseDevelopmentStorage=true"}, "key", "http://127.0.0.1:10000/devstoreaccount1/cont"),
        ({"AZURE_STORAGE_CONNECTION_STRING": "AccountName=acct"}, "identity", "https://acct.blob.core.windows.net/cont"),
    ],
)
def test_credentials_come_from_what_is_set(environ, kind, url):
    store = service("wabs://cont/pg", Settings(environ))
    assert store._access.kind == kind
    assert store._access.client.url == url


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "WABS_ACCOUNT_NAME"),
        ({"WABS_ACCESS_KEY": KEY}, "WABS_ACCOUNT_NAME"),
        ({"WABS_ACCOUNT_NAME": "https://acct.blob.core.windows.net", "WABS_ACCESS_KEY": KEY}, "without https://"),
        (ACCOUNT | {"WABS_ACCESS_KEY": KEY, "WABS_SAS_TOKEN": SAS}, "WABS_SAS_TOKEN"),
        (ACCOUNT | {"WABS_ACCESS_KEY": KEY[:-3]}, "Base64"),
        (ACCOUNT | {"WABS_SAS_TOKEN": "https://acct.blob.core.windows.net/"}, "sig"),
        ({"AZURE_STORAGE_CONNECTION_STRING": f"AccountName=acct;AccountKey={KEY[:-3]}"}, "Base64"),
        ({"AZURE_STORAGE_CONNECTION_STRING": f"AccountKey={KEY}"}, "AZURE_STORAGE_CONNECTION_STRING"),
        (ACCOUNT | {"AZURE_STORAGE_CONNECTION_STRING": f"AccountName=other;AccountKey={KEY}"}, "WABS_ACCOUNT_NAME"),
        ({"AZURE_STORAGE_CONNECTION_STRING": f"AccountName=acct;AccountKey={KEY}", "WABS_ACCESS_KEY": OTHER_KEY}, "WABS_ACCESS_KEY"),
        ({"AZURE_STORAGE_CONNECTION_STRING": f"AccountName=acct;AccountKey={KEY}", "WABS_SAS_TOKEN": SAS}, "WABS_SAS_TOKEN"),
        ({"AZURE_STORAGE_CONNECTION_STRING": "BlobEndpoint=http://acct.blob.x.y/"}, "AZURE_STORAGE_CONNECTION_STRING"),
    ],
)
def test_what_cannot_be_used_or_contradicts_itself_is_refused(environ, words):
    with pytest.raises(ConfigurationError) as caught:
        service("wabs://cont/pg", Settings(environ))
    assert words in told(caught.value)
    for secret in (KEY[:20], OTHER_KEY[:20], "c2VjcmV0"):
        assert secret not in told(caught.value)


def test_without_the_library_for_identities_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    with pytest.raises(ConfigurationError, match="no credentials") as caught:
        service("wabs://cont/pg", Settings(ACCOUNT))
    assert "wal-e[azure-identity]" in caught.value.hint


def test_a_machine_without_an_identity_is_told_what_to_set(monkeypatch):
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")  # the only kind that asks nobody
    for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "AZURE_USERNAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StoreMisconfigured, match="no token for the Azure account acct") as caught:
        service("wabs://cont/pg", Settings(ACCOUNT)).stat("key")
    assert "EnvironmentCredential" in caught.value.detail
    assert "WABS_ACCESS_KEY" in caught.value.hint


def test_a_directory_of_identities_that_cannot_be_reached_is_transient(monkeypatch):
    class Unreached:
        def get_token(self, *scopes, **options):
            raise ClientAuthenticationError("DefaultAzureCredential failed.\n\tEnvironmentCredential: HTTPSConnectionPool(): Max retries exceeded with url: /")

    monkeypatch.setattr("azure.identity.DefaultAzureCredential", Unreached)
    with pytest.raises(StoreUnavailable, match="no token for the Azure account acct at the moment"):
        service("wabs://cont/pg", Settings(ACCOUNT)).stat("key")


def test_secrets_are_hidden_from_the_log():
    from wal_e.log import masked

    service("wabs://cont/pg", Settings(ACCOUNT | {"WABS_ACCESS_KEY": KEY}))
    service("wabs://cont/pg", Settings(ACCOUNT | {"WABS_SAS_TOKEN": SAS}))
    shown = masked(f"{KEY} {SAS} c2VjcmV0IHNpZ25hdHVyZSE= c2VjcmV0IHNpZ25hdHVyZSE%3D")
    assert KEY not in shown
    assert "c2VjcmV0" not in shown


def test_a_netrc_does_not_replace_our_signature(prefix, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    open_store(azure_settings(prefix)).put("key", [b"1"])


def test_opening_a_store_asks_nobody_and_imports_no_identity(prefix, proxy):
    environ = behind(proxy, prefix)._environ
    script = (
        "import os, sys\n"
        "from wal_e.blobstore.registry import open_store\n"
        "from wal_e.settings import Settings\n"
        "open_store(Settings(os.environ))\n"
        "assert not {'azure.identity', 'msal', 'gevent', 'azure.storage.blob.aio'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], env=os.environ | environ, check=True, timeout=60)
    assert proxy.connections == 0


def test_it_works_under_gevent(prefix, proxy):
    script = (
        "from gevent import monkey\n"
        "monkey.patch_all(os=False, signal=False)\n"
        "import os, gevent\n"
        "from wal_e.blobstore.registry import open_store\n"
        "from wal_e.settings import Settings\n"
        "store = open_store(Settings(os.environ), lanes=2)\n"
        "piece = os.urandom(1 << 20)\n"
        "def work(name):\n"
        "    store.create(name, (piece for _ in range(20)))\n"
        "    return sum(chunk == piece or len(chunk) for chunk in store.get(name))\n"
        "jobs = [gevent.spawn(work, f'dir/{number}') for number in range(2)]\n"
        "gevent.joinall(jobs, timeout=60, raise_error=True)\n"
        "assert [job.value for job in jobs] == [20 << 20] * 2, [job.value for job in jobs]\n"
    )
    subprocess.run([sys.executable, "-c", script], env=os.environ | behind(proxy, prefix)._environ, check=True, timeout=120)
    assert proxy.overlap > 2
