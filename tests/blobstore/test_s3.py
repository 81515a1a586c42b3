"""What is special to S3; what every store does is in test_contract.py."""

import hashlib
import json
import shutil
import ssl
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from fault_rules import Corrupt, Cut, CutEvery, Delay, LoseAnswer, Rule, Slow, Stall, slow_down, too_many_requests
from fix_s3 import Canned, admin, document, new_bucket, server, set_keys, settings, without_aws
from servers import moto, versity

from wal_e import log
from wal_e.blobstore.registry import open_store
from wal_e.blobstore.s3.client import Endpoint, new_client, parse_endpoint
from wal_e.blobstore.s3.service import S3Service
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
SECRET = "a-very-secret-key"

VERBS = {
    "put": lambda store: store.put("key", [b"1"]),
    "put of a large blob": lambda store: store.put("key", (bytes(MIB) for _ in range(18))),
    "create": lambda store: store.create("key", [b"1"]),
    "create of a large blob": lambda store: store.create("key", (bytes(MIB) for _ in range(18))),
    "get": lambda store: list(store.get("key")),
    "get of a range": lambda store: list(store.get("key", start=5, length=1)),
    "stat": lambda store: store.stat("key"),
    "list": lambda store: list(store.list()),
    "delete": lambda store: store.delete(["key"]),
    "delete of two": lambda store: store.delete(["key", "other"]),
    "leftovers": lambda store: list(store.leftovers()),
}
# A create of a large blob looks first, which is a read.
RIGHTS = {
    "create of a large blob": "read",
    "put": "write",
    "create": "write",
    "get": "read",
    "stat": "read",
    "list": "list",
    "leftovers": "list",
    "delete": "delete",
}

every_verb = pytest.mark.parametrize("verb", VERBS)


def told(error):
    """All that a user is shown of an error."""
    return f"{error.message}\n{error.detail}\n{error.hint}"


def read(store, key, **part):
    return b"".join(store.get(key, **part))


def keys(store):
    return [blob.key for blob in store.list()]


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """No AWS but what the test sets; keys of the tests are set."""
    without_aws(monkeypatch, tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTESTS")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return monkeypatch


@pytest.fixture
def bucket():
    return new_bucket(versity)


@pytest.fixture
def proxy(aws):
    set_keys(aws, server(versity))
    with FaultProxy(server(versity).port) as proxy:
        yield proxy


@pytest.fixture
def store(proxy, bucket):
    """A store on the real server, behind the proxy."""
    return open_store(settings(proxy.url, bucket))


def service_of(url, bucket="bucket", path="/some/prefix", **others):
    chosen = settings(url, bucket, path, **others)
    return S3Service(parse_store_url(chosen.prefix), chosen, 4)


def one_try(url, bucket="bucket", **others):
    return open_store(settings(url, bucket, WALE_RETRIES="1", **others))


@pytest.fixture
def canned(aws):
    """Makes a server of canned answers."""
    servers = []

    def make(answer, **others):
        servers.append(Canned(answer if callable(answer) else lambda asked: answer, **others))
        return servers[-1]

    yield make
    for each in servers:
        each.__exit__()


def error_of(verb, store):
    with pytest.raises(StoreError) as caught:
        VERBS[verb](store)
    return caught.value


# ---- errors of a real server


@pytest.mark.parametrize("wrong", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_keys_are_a_misconfiguration(aws, bucket, wrong):
    set_keys(aws, server(versity))
    aws.setenv(wrong, "wrong-" + SECRET)
    store = open_store(settings(server(versity).url, bucket))
    for verb in VERBS:
        error = error_of(verb, store)
        assert type(error) is StoreMisconfigured
        assert not error.transient
        assert "does not accept the credentials" in told(error)
        assert "AWS_ACCESS_KEY_ID" in error.hint
        assert wrong != "AWS_SECRET_ACCESS_KEY" or SECRET not in told(error)


@every_verb
def test_a_bucket_that_is_not_there_is_a_misconfiguration(proxy, verb):
    error = error_of(verb, open_store(settings(proxy.url, "no-such-bucket")))
    assert type(error) is StoreMisconfigured
    assert "no bucket no-such-bucket" in told(error)
    assert len(proxy.log) <= 3


def test_missing_rights_are_named(aws, bucket):
    endpoint = server(versity)
    endpoint.add_user(f"nobody-{bucket}", SECRET)
    aws.setenv("AWS_ACCESS_KEY_ID", f"nobody-{bucket}")
    store = open_store(settings(endpoint.url, bucket))
    for verb in VERBS:
        error = error_of(verb, store)
        assert type(error) is StoreForbidden
        assert not error.transient
        assert f"not allowed to {RIGHTS.get(verb) or RIGHTS[verb.split()[0]]} s3://{bucket}/some/prefix" in told(error)
        assert "AccessDenied" in error.detail
        assert SECRET not in told(error)


def test_one_may_read_what_one_may_not_write_list_or_delete(aws, bucket):
    endpoint = server(versity)
    set_keys(aws, endpoint)
    open_store(settings(endpoint.url, bucket)).put("key", [b"content"])
    endpoint.add_user(f"reader-{bucket}", SECRET)
    grant = {"Effect": "Allow", "Principal": {"AWS": [f"reader-{bucket}"]}, "Action": ["s3:GetObject"], "Resource": [f"arn:aws:s3:::{bucket}/*"]}
    admin(versity).put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [grant]}))
    aws.setenv("AWS_ACCESS_KEY_ID", f"reader-{bucket}")
    aws.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    store = open_store(settings(endpoint.url, bucket))
    assert read(store, "key") == b"content"
    for verb in ("put", "put of a large blob", "list", "delete", "delete of two"):
        error = error_of(verb, store)
        assert type(error) is StoreForbidden
        assert f"not allowed to {RIGHTS[verb.split()[0]]}" in told(error)


def test_an_answer_to_head_has_its_reason_found_out(canned):
    def answer(asked):
        return (403, {}, document("ExpiredToken", "The provided token has expired."))

    error = error_of("stat", one_try(canned(answer).url))
    assert type(error) is StoreMisconfigured
    assert "ExpiredToken" in error.detail


def test_absence_without_a_reason_is_absence_only_in_a_bucket_that_is_there(canned):
    there = canned(lambda asked: (404 if "key" in asked.path else 200, {}, b""))
    assert type(error_of("stat", one_try(there.url))) is BlobNotFound
    assert type(error_of("get", one_try(there.url))) is BlobNotFound
    hidden = canned(lambda asked: (404 if "key" in asked.path else 403, {}, b""))
    assert type(error_of("stat", one_try(hidden.url))) is BlobNotFound
    nowhere = canned((404, {}, b""))
    assert type(error_of("stat", one_try(nowhere.url))) is StoreMisconfigured
    assert type(error_of("get", one_try(nowhere.url))) is StoreMisconfigured


def test_a_bucket_is_looked_for_once(canned):
    there = canned(lambda asked: (404 if "key" in asked.path else 200, {}, b""))
    store = one_try(there.url)
    for _ in range(3):
        error_of("stat", store)
    assert [asked.path for asked in there.asked].count("/bucket") == 1


# ---- errors that only Amazon makes, canned

TOKEN_HINT = "Get new temporary credentials"
CANNED = {
    "wrong region": (301, {"x-amz-bucket-region": "eu-central-1"}, document("PermanentRedirect"), StoreMisconfigured, "AWS_REGION=eu-central-1"),
    "wrong region, its endpoint only": (307, {}, document("TemporaryRedirect", Endpoint="b.s3.eu-west-1.amazonaws.com"), StoreMisconfigured, "eu-west-1"),
    "region of the signature": (400, {}, document("AuthorizationHeaderMalformed", Region="eu-north-1"), StoreMisconfigured, "AWS_REGION=eu-north-1"),
    "expired": (400, {}, document("ExpiredToken", "The provided token has expired."), StoreMisconfigured, TOKEN_HINT),
    "invalid token": (400, {}, document("InvalidToken"), StoreMisconfigured, TOKEN_HINT),
    "unknown key": (403, {}, document("InvalidAccessKeyId"), StoreMisconfigured, "does not accept the credentials"),
    "401": (401, {}, b"", StoreMisconfigured, "does not accept the credentials"),
    "denied": (403, {}, document("AccessDenied"), StoreForbidden, "s3:ListBucket"),
    "no such bucket": (404, {}, document("NoSuchBucket"), StoreMisconfigured, "there is no bucket bucket"),
    "no such key": (404, {}, document("NoSuchKey"), BlobNotFound, "there is no s3://bucket/some/prefix/key"),
    "frozen": (403, {}, document("InvalidObjectState", StorageClass="DEEP_ARCHIVE"), BlobFrozen, "--key some/prefix/key --restore-request Days=7"),
    "thawing": (409, {}, document("RestoreAlreadyInProgress"), BlobFrozen, "being restored"),
    "internal": (500, {}, document("InternalError"), StoreUnavailable, "for the moment"),
    "overload": (503, {"Retry-After": "7"}, document("SlowDown"), StoreUnavailable, "SlowDown"),
    "429": (429, {"Retry-After": "3"}, b"", StoreUnavailable, "for the moment"),
    "slow body": (400, {}, document("RequestTimeout"), StoreUnavailable, "for the moment"),
    "conflict": (409, {}, document("ConditionalRequestConflict"), StoreUnavailable, "for the moment"),
    "KMS": (400, {}, document("KMS.DisabledException"), StoreMisconfigured, "encryption"),
    "odd": (418, {}, document("Teapot", "Short and stout."), StoreError, "Teapot: Short and stout (request REQ1)"),
}


@pytest.mark.parametrize("name", CANNED)
def test_an_answer_of_amazon_is_explained(canned, name):
    status, headers, content, kind, words = CANNED[name]
    there = canned((status, headers, content))
    error = error_of("get", one_try(there.url))
    assert isinstance(error, kind)
    assert kind is StoreError or type(error) is kind
    assert words in told(error)
    assert error.transient == (kind is StoreUnavailable)
    assert "bucket" in error.message
    assert SECRET not in told(error)
    assert len([asked for asked in there.asked if asked.method == "GET"]) == 1
    if "Retry-After" in headers:
        assert error.wait_s == float(headers["Retry-After"])


def test_a_wrong_region_is_named_for_head_too(canned):
    def malformed(asked):
        return 400, {}, b"" if asked.method == "HEAD" else document("AuthorizationHeaderMalformed", Region="ap-south-1")

    for answer in (malformed, (301, {"x-amz-bucket-region": "ap-south-1"}, b"")):
        error = error_of("stat", one_try(canned(answer).url))
        assert type(error) is StoreMisconfigured
        assert "ap-south-1" in error.message


@pytest.mark.parametrize(("minutes", "words"), [(-23, "23 minutes ahead"), (40, "40 minutes behind")])
@pytest.mark.parametrize("verb", ["get", "stat"])
def test_a_wrong_clock_is_measured(canned, minutes, words, verb):
    there = canned(lambda asked: (403, {}, document("RequestTimeTooSkewed", "The difference is too large.")))
    there.date = (datetime.now(UTC) + timedelta(minutes=minutes)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    error = error_of(verb, one_try(there.url))
    assert type(error) is StoreMisconfigured
    assert words in told(error)
    assert "NTP" in error.hint


def test_an_error_within_status_200_is_an_error(canned):
    def answer(asked):
        if asked.query == "uploads":
            return 200, {}, b"<InitiateMultipartUploadResult><UploadId>U1</UploadId></InitiateMultipartUploadResult>"
        if asked.method == "PUT":
            return 200, {"ETag": '"0123"'}, b""
        return 200, {}, document("InternalError")

    upload = service_of(canned(answer).url).begin("key", PUT)
    upload.send(Part(0, 0, b"1", True))
    with pytest.raises(StoreUnavailable, match="InternalError"):
        upload.complete(Whole(1, 1, 0))


def test_a_frozen_blob_says_how_to_thaw_it(aws):
    set_keys(aws, server(moto))
    bucket = new_bucket(moto)
    store = open_store(settings(server(moto).url, bucket, WALE_S3_STORAGE_CLASS="GLACIER"))
    store.put("a key", [b"1"])
    with pytest.raises(BlobFrozen) as caught:
        list(store.get("a key"))
    assert f"aws s3api restore-object --bucket {bucket} --key 'some/prefix/a key'" in caught.value.hint
    assert store.stat("a key").size == 1


def test_a_frozen_blob_that_thaws_is_waited_for(canned):
    def answer(asked):
        if asked.method == "HEAD":
            return 200, {"x-amz-restore": 'ongoing-request="true"', "Last-Modified": "Sat, 21 Nov 2026 15:00:00 GMT"}, b""
        return 403, {}, document("InvalidObjectState", StorageClass="GLACIER")

    error = error_of("get", one_try(canned(answer).url))
    assert type(error) is BlobFrozen
    assert "being restored" in error.hint
    assert "restore-object" not in error.hint


# ---- the network


def test_a_refused_connection_passes(store, proxy):
    with proxy.refusing():
        error = error_of("get", open_store(settings(proxy.url, "bucket", WALE_RETRIES="2")))
    assert type(error) is StoreUnavailable
    assert "cannot be reached" in error.message
    assert error.detail == f"Connection refused (127.0.0.1:{proxy.port})."
    assert error.wait_s is None


def test_silence_ends_with_the_read_timeout(proxy, bucket):
    proxy.add(Rule(Stall()))
    error = error_of("get", one_try(proxy.url, bucket, WALE_READ_TIMEOUT="0.3"))
    assert type(error) is StoreUnavailable
    assert "does not answer" in error.message


def test_a_stale_connection_is_replaced_at_once(store, proxy, bucket):
    store.put("key", [b"1"])
    proxy.add(Rule(LoseAnswer(), method="GET", limit=1))
    assert read(store, "key") == b"1"
    proxy.clear()
    proxy.add(Rule(LoseAnswer(), method="GET", limit=1))
    assert error_of("get", one_try(proxy.url, bucket)).wait_s == 0


@pytest.mark.parametrize("trouble", [slow_down(), too_many_requests(0), LoseAnswer(), Cut(10, of="request")])
@pytest.mark.parametrize("verb", ["put", "create"])
@pytest.mark.parametrize("size", [1000, 20 * MIB])
def test_trouble_that_passes_loses_nothing(store, proxy, trouble, verb, size):
    content = bytes(range(250)) * 4
    chunks = [content * (size // 1000)]
    proxy.add(Rule(trouble, method="PUT|POST", nth=2), Rule(trouble, method="PUT|POST", nth=1), Rule(trouble, method="POST", nth=3))
    assert getattr(store, verb)("dir/key", chunks) == len(chunks[0])
    assert sum(rule.applied for rule in proxy._rules) >= (1 if size == 1000 else 2)
    proxy.clear()
    assert read(store, "dir/key") == chunks[0]
    assert keys(store) == ["dir/key"]


def test_an_upload_whose_completion_was_not_heard_of_is_whole_without_being_read(store, proxy):
    proxy.add(Rule(LoseAnswer(), method="POST", path="uploadId", limit=2))
    store.create("key", [bytes(MIB)] * 20)
    assert not [record for record in proxy.log if record.method == "GET"]
    assert list(store.leftovers()) == []


COMPLETED = {
    "its checksum": ({"x-amz-checksum-crc32c": "4waSgw==", "x-amz-checksum-type": "FULL_OBJECT"}, True),
    "other parts": ({"ETag": '"7cb1b1c2d15fa4a4ef2ab8e4a4a8e9d0-1"'}, False),
    "its parts' checksums": ({"x-amz-checksum-crc32c": "4waSgw==-1", "x-amz-checksum-type": "COMPOSITE", "ETag": '"%s-1"'}, True),
    "another size": ({"Content-Length": "8", "x-amz-checksum-crc32c": "4waSgw=="}, False),
    "another checksum": ({"x-amz-checksum-crc32c": "AAAAAA=="}, False),
}


@pytest.mark.parametrize("known_by", COMPLETED)
def test_an_upload_that_is_gone_because_it_was_completed_is_complete(canned, known_by):
    headers, is_ours = COMPLETED[known_by]
    part_etag = hashlib.md5(b"123456789").hexdigest()
    etag = headers.get("ETag", '"other"').replace("%s", hashlib.md5(bytes.fromhex(part_etag)).hexdigest())

    def answer(asked):
        if asked.method == "HEAD":
            return 200, {"Content-Length": "9", "Last-Modified": "Sat, 21 Nov 2026 15:00:00 GMT", **headers, "ETag": etag}, b""
        if asked.method == "POST" and "uploadId" in asked.query:
            return 404, {}, document("NoSuchUpload")
        status, _, content = ok(asked)
        return status, {"ETag": f'"{part_etag}"'}, content

    upload = service_of(canned(answer).url).begin("key", PUT)
    upload.send(Part(0, 0, b"123456789", True))
    if is_ours:
        upload.complete(Whole(9, 1, 0xE3069283))
        return
    with pytest.raises(UploadLost, match="is gone"):
        upload.complete(Whole(9, 1, 0xE3069283))


def test_a_create_that_another_won_while_answers_were_lost_is_lost(store, proxy):
    def chunks():
        yield from [bytes(MIB)] * 20
        store.put("key", [b"theirs"])
        proxy.add(Rule(LoseAnswer(), method="POST", path="uploadId", limit=1))
        yield bytes(MIB)

    with pytest.raises(BlobExists):
        store.create("key", chunks())
    assert read(store, "key") == b"theirs"
    assert list(store.leftovers()) == []


@pytest.mark.parametrize("size", [1000, 20 * MIB])
@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
def test_what_changes_on_the_way_up_is_sent_again(proxy, bucket, size, checksums):
    store = open_store(settings(proxy.url, bucket, WALE_S3_CHECKSUMS=checksums))
    proxy.add(Rule(Corrupt(500, of="request"), method="PUT", limit=1))
    store.put("key", [bytes(size)])
    assert [record.status for record in proxy.log if record.faults] == [400]
    assert read(store, "key") == bytes(size)


def test_a_small_blob_that_changes_on_the_way_down_is_asked_for_again(store, proxy):
    store.put("key", [bytes(1000)])
    proxy.add(Rule(Corrupt(500), method="GET", limit=1))
    assert read(store, "key") == bytes(1000)
    assert proxy.log[-2].faults


@pytest.mark.parametrize("mib", [3, 20])
def test_a_large_blob_that_changes_on_the_way_down_is_damaged(store, proxy, mib):
    store.put("key", [bytes(MIB)] * mib)
    proxy.add(Rule(Corrupt(MIB), method="GET", limit=1))
    with pytest.raises(DamageError):
        read(store, "key")


def test_an_old_checksum_is_kept_as_metadata(proxy, bucket):
    store = open_store(settings(proxy.url, bucket, WALE_S3_CHECKSUMS="when_required"))
    store.put("key", [bytes(3 * MIB)])
    proxy.add(Rule(Corrupt(MIB), method="GET", limit=1))
    with pytest.raises(DamageError):
        read(store, "key")


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_a_download_that_is_cut_goes_on_where_it_stopped(store, proxy, how):
    content = b"".join(number.to_bytes(8, "big") for number in range(4 * MIB // 8))
    store.put("key", [content])
    proxy.add(Rule(Cut(MIB, how=how), method="GET", limit=3))
    assert read(store, "key") == content
    assert len([record for record in proxy.log if record.method == "GET"]) == 4


def test_a_download_that_is_cut_never_goes_on_in_another_version(store, proxy):
    store.put("key", [b"a" * 4 * MIB])
    chunks = store.get("key")
    proxy.add(Rule(Cut(MIB), method="GET", limit=1))
    next(chunks)
    store.put("key", [b"b" * 4 * MIB])
    with pytest.raises(StoreError, match="replaced while it was read"):
        list(chunks)


def test_the_first_bytes_come_before_the_rest_is_there(store, proxy):
    store.put("key", [bytes(4 * MIB)])
    stall = Stall(after=50_000)
    proxy.add(Rule(stall, method="GET"))
    chunks = store.get("key")
    first = next(chunks)
    assert not stall.released.is_set()
    stall.released.set()
    assert 0 < len(first) <= 50_000
    assert len(first) + sum(map(len, chunks)) == 4 * MIB


def test_connections_are_used_again_but_for_those_with_an_unread_rest(store, proxy):
    store.put("key", [bytes(4 * MIB)])
    for _ in range(3):
        assert len(read(store, "key")) == 4 * MIB
        store.stat("key")
    assert proxy.connections == 1
    chunks = store.get("key")
    next(chunks)
    chunks.close()
    opened = store._service.open("key", 0, None, None)
    opened.chunks.close()
    assert list(opened.chunks) == []
    assert read(store, "key") == bytes(4 * MIB)
    assert proxy.connections == 3


def test_a_slow_line_is_not_taken_for_a_dead_one(proxy, bucket):
    proxy.add(Rule(Slow(5 * MIB), method="PUT"))
    one_try(proxy.url, bucket, WALE_CONNECT_TIMEOUT="0.5").put("key", [bytes(10 * MIB)])
    assert proxy.log[-1].status == 200


def test_a_bad_line_loses_nothing_and_leaves_nothing_else(store, proxy):
    content = [bytes([number]) * MIB for number in range(100)]
    proxy.add(Rule(slow_down(), probability=0.2), Rule(CutEvery(20_000_000)))
    store.create("key", iter(content))
    assert b"".join(store.get("key")) == b"".join(content)
    faults = [record for record in proxy.log if record.faults]
    proxy.clear()
    assert len(faults) > 5
    assert keys(store) == ["key"]
    assert list(store.leftovers()) == []


# ---- uploads that do not end


def test_an_upload_that_fails_leaves_nothing(store, proxy, bucket):
    def chunks():
        yield from [bytes(MIB)] * 40
        raise RuntimeError("the codec died")

    with pytest.raises(RuntimeError):
        store.put("key", chunks())
    assert [record.method for record in proxy.log].count("PUT") > 1
    assert list(store.leftovers()) == []
    assert "Uploads" not in admin(versity).list_multipart_uploads(Bucket=bucket)


@pytest.mark.parametrize("kind", [moto, versity])
@pytest.mark.parametrize("key", ["dir/a key", "odd+%20é/☃"])
def test_a_killed_upload_is_found_and_removed(aws, kind, key):
    set_keys(aws, server(kind))
    service = service_of(server(kind).url, new_bucket(kind))
    service.begin(key, CREATE).send(Part(0, 0, bytes(5 * MIB), False))
    found = list(service.leftovers())
    assert [leftover.size for leftover in found] == [5 * MIB]
    assert key in found[0].description
    assert found[0].started.utcoffset() == timedelta(0)
    service.discard(found[0])
    assert list(service.leftovers()) == []
    service.discard(found[0])


def test_odd_names_of_unfinished_uploads_are_read_and_paged_as_s3_writes_them(canned):
    def upload(key):
        return f"<Upload><Key>some%2Fprefix%2F{key}</Key><UploadId>U+1</UploadId><Initiated>2026-11-21T15:00:00.000Z</Initiated></Upload>"

    def answer(asked):
        if "uploadId" in asked.query:
            return 200, {}, b"<ListPartsResult><IsTruncated>false</IsTruncated><Part><Size>7</Size></Part></ListPartsResult>"
        markers = "<IsTruncated>true</IsTruncated><NextKeyMarker>some%2Fprefix%2Fa+b</NextKeyMarker><NextUploadIdMarker>U+1</NextUploadIdMarker>"
        page = upload("c%0Ad") if "key-marker" in asked.query else upload("a+b") + markers
        return 200, {}, f"<ListMultipartUploadsResult><EncodingType>url</EncodingType>{page}</ListMultipartUploadsResult>".encode()

    there = canned(answer)
    found = list(service_of(there.url).leftovers())
    assert [leftover.address for leftover in found] == ["U+1 some/prefix/a b", "U+1 some/prefix/c\nd"]
    assert [leftover.size for leftover in found] == [7, 7]
    assert "key-marker=some%2Fprefix%2Fa%20b" in there.asked[2].query


def test_leftovers_are_of_this_prefix_only(aws, bucket):
    set_keys(aws, server(versity))
    for path in ("/some/prefix", "/some/prefix2", ""):
        service_of(server(versity).url, bucket, path).begin("key", PUT)
    assert [found.description for found in service_of(server(versity).url, bucket).leftovers()] == [f"unfinished upload of s3://{bucket}/some/prefix/key"]
    assert len(list(service_of(server(versity).url, bucket, "").leftovers())) == 3


def test_an_upload_that_somebody_aborted_is_begun_again_by_the_caller(aws, bucket):
    set_keys(aws, server(versity))
    service = service_of(server(versity).url, bucket)
    upload = service.begin("key", PUT)
    upload.send(Part(0, 0, b"1", True))
    for leftover in service.leftovers():
        service.discard(leftover)
    for use in (lambda: upload.send(Part(1, 1, b"2", True)), lambda: upload.complete(Whole(1, 1, 0))):
        with pytest.raises(StoreError, match="is gone") as caught:
            use()
        assert not caught.value.transient
    upload.abort()


def test_a_big_upload_takes_little_memory(aws, bucket):
    set_keys(aws, server(versity))
    script = f"""
import os
from wal_e.blobstore.registry import open_store
from wal_e.settings import Settings
store = open_store(Settings({{"WALE_S3_PREFIX": "s3://{bucket}/p", "WALE_S3_ENDPOINT": "{server(versity).url.replace("://", "+path://")}"}}))
piece = os.urandom(1 << 20)
assert store.put("big", (piece for _ in range(200))) == 200 << 20
assert sum(map(len, store.get("big"))) == 200 << 20
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150 << 10  # KiB


# ---- what is sent


def ok(asked):
    """Take everything, and have nothing."""
    if asked.method == "HEAD":
        return 404, {}, b""
    if "uploads" in asked.query:
        return 200, {}, b"<InitiateMultipartUploadResult><UploadId>U1</UploadId></InitiateMultipartUploadResult>"
    if asked.method == "POST":
        return 200, {}, b"<DeleteResult></DeleteResult>"
    return (412, {}, document("PreconditionFailed")) if "if-none-match" in asked.headers else (200, {"ETag": '"1"'}, b"")


def sent(there, method):
    return [asked for asked in there.asked if asked.method == method]


def test_checksums_go_with_every_body(canned):
    there = canned(ok)
    service = service_of(there.url)
    service.write("key", b"123456789", 0xE3069283, PUT)
    service.begin("key", PUT).send(Part(0, 0, b"123456789", True))
    service.delete(["a", "b"])
    for put in sent(there, "PUT"):
        assert put.headers["x-amz-checksum-crc32c"] == "4waSgw=="
        assert put.body == b"123456789"
        assert "content-encoding" not in put.headers
        assert "expect" not in put.headers
    begin, delete = sent(there, "POST")
    assert (begin.headers["x-amz-checksum-algorithm"], begin.headers["x-amz-checksum-type"]) == ("CRC32C", "FULL_OBJECT")
    assert "x-amz-checksum-crc32" in delete.headers


def test_old_clones_get_content_md5_and_nothing_newer(canned):
    there = canned(ok)
    service = service_of(there.url, WALE_S3_CHECKSUMS="when_required")
    service.write("key", b"123456789", 0xE3069283, PUT)
    service.begin("key", PUT).send(Part(0, 0, b"123456789", True))
    service.delete(["a", "b"])
    for asked in there.asked:
        assert not [name for name in asked.headers if "checksum" in name or name == "content-encoding"]
    assert [asked.headers["content-md5"] for asked in sent(there, "PUT")] == ["JfnnlDI7RTiF9RgfG2JNCw=="] * 2
    assert "content-md5" in sent(there, "POST")[1].headers
    assert sent(there, "PUT")[0].headers["x-amz-meta-crc32c"] == "e3069283"


def test_a_refusal_is_heard_before_a_large_body_is_sent(canned):
    there = canned(ok)
    service = service_of(there.url)
    there.refusal = (412, document("PreconditionFailed"))
    with pytest.raises(BlobExists):
        service.write("key", bytes(16 * MIB), 0, CREATE)
    assert sent(there, "PUT") == []
    there.refusal = None
    service.write("key", bytes(16 * MIB), 0, PUT)
    assert len(sent(there, "PUT")[0].body) == 16 * MIB


@pytest.mark.parametrize(
    ("chosen", "headers"),
    [
        ({}, {}),
        ({"WALE_S3_SSE": "AES256"}, {"x-amz-server-side-encryption": "AES256"}),
        ({"WALE_S3_SSE": "AES256", "WALE_DISABLE_S3_SSE": "true"}, {}),
        ({"WALE_S3_SSE": "none"}, {}),
        (
            {"WALE_S3_SSE": "aws:kms", "WALE_S3_SSE_KMS_KEY_ID": "k1"},
            {"x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": "k1"},
        ),
        ({"WALE_S3_STORAGE_CLASS": "STANDARD_IA"}, {"x-amz-storage-class": "STANDARD_IA"}),
    ],
)
def test_encryption_and_storage_class_go_with_every_object(canned, chosen, headers):
    there = canned(ok)
    service = service_of(there.url, **chosen)
    service.write("key", b"1", 0, PUT)
    service.begin("key", PUT)
    names = ("x-amz-server-side-encryption", "x-amz-server-side-encryption-aws-kms-key-id", "x-amz-storage-class")
    for asked in there.asked:
        assert {name: asked.headers[name] for name in names if name in asked.headers} == headers


def test_amazon_is_asked_for_aes256_unless_told_otherwise(aws):
    service = S3Service(parse_store_url("s3://bucket"), Settings({}), 4)
    assert service._kept("key", service._asked("write", "key"))["ServerSideEncryption"] == "AES256"
    service = S3Service(parse_store_url("s3://bucket"), Settings({"WALE_DISABLE_S3_SSE": "true"}), 4)
    assert "ServerSideEncryption" not in service._kept("key", service._asked("write", "key"))


@pytest.mark.parametrize(("key", "kind"), [("a/b.json", "application/json"), ("a.txt", "text/plain"), ("a.lzo", "application/octet-stream")])
def test_content_types(canned, key, kind):
    there = canned(ok)
    service_of(there.url).write(key, b"1", 0, PUT)
    assert there.asked[-1].headers["content-type"] == kind


def test_repeated_slashes_of_the_prefix_are_one(canned):
    there = canned(ok)
    service_of(there.url, path="//some///prefix").write("key", b"1", 0, PUT)
    assert there.asked[-1].path == "/bucket/some/prefix/key"


# ---- conditional writes and deletions at clones


def test_a_clone_that_refuses_the_condition_is_looked_at_before_each_create(canned, capsys):
    stored = set()

    def answer(asked):
        if "if-none-match" in asked.headers:
            return 501, {}, document("NotImplemented", "A header you provided implies functionality that is not implemented.")
        if asked.method == "HEAD":
            return (200 if asked.path in stored else 404), {"Last-Modified": "Sat, 21 Nov 2026 15:00:00 GMT"}, b""
        stored.add(asked.path)
        return 200, {"ETag": '"1"'}, b""

    store = one_try(canned(answer).url)
    store.create("a", [b"1"])
    store.create("b", [b"1"])
    with pytest.raises(BlobExists):
        store.create("a", [b"2"])
    assert capsys.readouterr().err.count("two writers could overwrite each other") == 1


def test_a_clone_that_ignores_the_condition_is_found_out_once(canned, capsys):
    there = canned(lambda asked: (404, {}, b"") if asked.method == "HEAD" else (200, {"ETag": '"1"'}, b""))
    store = one_try(there.url)
    store.create("a", [b"1"])
    store.create("b", [b"1"])
    assert capsys.readouterr().err.count("ignores the condition") == 1
    assert len(sent(there, "PUT")) == 3


def test_a_clone_that_keeps_the_condition_is_believed(store, proxy, capsys):
    store.create("a", [b"1"])
    store.create("b", [b"1"])
    assert [record.status for record in proxy.log if record.method == "PUT"] == [200, 412, 200]
    assert capsys.readouterr().err == ""


def test_amazon_is_believed_without_a_look(canned, monkeypatch):
    monkeypatch.setattr("wal_e.blobstore.s3.bucket.is_amazon", lambda client: True)
    there = canned(lambda asked: (200, {"ETag": '"1"'}, b""))
    one_try(there.url).create("a", [b"1"])
    assert [asked.method for asked in there.asked] == ["PUT"]
    assert there.asked[0].headers["if-none-match"] == "*"


def test_a_clone_without_multiple_deletion_is_asked_for_each(canned):
    there = canned(lambda asked: (501, {}, document("NotImplemented")) if asked.method == "POST" else (204, {}, b""))
    store = one_try(there.url)
    store.delete(["a", "b"])
    store.delete(["c", "d"])
    assert [asked.method for asked in there.asked] == ["POST", "DELETE", "DELETE", "DELETE", "DELETE"]


def test_one_refused_key_among_a_thousand_is_named(canned):
    refusal = "<Error><Key>some/prefix/k500</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    there = canned((200, {}, f"<DeleteResult>{refusal}</DeleteResult>".encode()))
    with pytest.raises(StoreForbidden) as caught:
        one_try(there.url).delete(f"k{number}" for number in range(1500))
    assert "k500" in told(caught.value)
    assert len(there.asked) == 2


def test_a_key_that_could_not_be_deleted_for_the_moment_is_tried_again(canned):
    refusal = "<Error><Key>some/prefix/b</Key><Code>InternalError</Code><Message>Try again.</Message></Error>"
    answers = [f"<DeleteResult>{refusal}</DeleteResult>".encode()]
    there = canned(lambda asked: (200, {}, answers.pop()) if asked.method == "POST" else (204, {}, b""))
    open_store(settings(there.url, "bucket")).delete(["a", "b"])
    assert [asked.method for asked in there.asked] == ["POST", "DELETE"]
    assert there.asked[1].path.endswith("/b")


# ---- endpoints, regions, certificates


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("http+path://localhost:9000", Endpoint("http://localhost:9000", "path")),
        ("https+path://s3.example.com", Endpoint("https://s3.example.com", "path")),
        ("https+path://s3.example.com/", Endpoint("https://s3.example.com", "path")),
        ("https+virtualhost://s3.example.com:8443", Endpoint("https://s3.example.com:8443", "virtual")),
        ("HTTPS+Subdomain://s3.example.com", Endpoint("https://s3.example.com", "virtual")),
        ("http+path://[::1]:9000", Endpoint("http://[::1]:9000", "path")),
    ],
)
def test_an_endpoint_is_written_as_wal_e_wrote_it(text, endpoint):
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize(
    "text",
    ["http://localhost", "localhost:9000", "ftp+path://h", "http+odd://h", "http+path://", "http+path://u:p@h", "http+path://h/p", "http+path://h?q=1"]
    + ["http+path://h:port", "http+path://h:0", "http+path://:9000"],
)
def test_what_is_no_endpoint_is_refused(aws, text):
    with pytest.raises(ConfigurationError) as caught:
        open_store(Settings({"WALE_S3_PREFIX": "s3://bucket", "WALE_S3_ENDPOINT": text}))
    assert "WALE_S3_ENDPOINT" in caught.value.message
    assert "u:p" not in told(caught.value)


def signed_url(chosen, endpoint=None):
    return new_client(chosen, endpoint, 1).generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "key"})


def test_buckets_are_addressed_as_the_endpoint_says(aws):
    assert signed_url(Settings({}), Endpoint("http://localhost:1", "virtual")).startswith("http://bucket.localhost:1/key?")
    assert signed_url(Settings({}), Endpoint("http://localhost:1", "path")).startswith("http://localhost:1/bucket/key?")
    assert ".amazonaws.com/key?" in signed_url(Settings({}))


def test_amazons_own_variables_name_an_endpoint_too(canned, aws):
    one, other = canned(ok), canned(ok)
    aws.setenv("AWS_ENDPOINT_URL_S3", other.url)
    open_store(Settings({"WALE_S3_PREFIX": "s3://bucket"})).put("key", [b"1"])
    assert [asked.path for asked in other.asked] == ["/bucket/key"]
    open_store(settings(one.url, "bucket")).put("key", [b"1"])
    assert len(one.asked) == len(other.asked) == 1


def test_an_unusable_endpoint_of_amazons_variables_is_a_misconfiguration(aws):
    aws.setenv("AWS_ENDPOINT_URL", "no endpoint")
    error = error_of("get", open_store(Settings({"WALE_S3_PREFIX": "s3://bucket"})))
    assert type(error) is StoreMisconfigured


@pytest.mark.parametrize(
    ("variables", "chosen", "region"),
    [
        ({}, {}, "us-east-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-1"}, {}, "eu-west-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-1"}, {"AWS_REGION": "eu-west-2"}, "eu-west-2"),
        ({"AWS_PROFILE": "there"}, {}, "eu-west-3"),
    ],
)
def test_the_region_that_is_signed_for(canned, aws, tmp_path, variables, chosen, region):
    (tmp_path / "config").write_text("[profile there]\nregion = eu-west-3\n")
    for name, value in {"AWS_CONFIG_FILE": str(tmp_path / "config"), **variables}.items():
        aws.setenv(name, value)
    there = canned(ok)
    open_store(settings(there.url, "bucket", **chosen)).put("key", [b"1"])
    assert f"/{region}/s3/" in there.asked[0].headers["authorization"]


def test_what_can_be_no_bucket_is_a_misconfiguration(aws):
    error = error_of("get", one_try("http://127.0.0.1:1", "No Bucket!"))
    assert type(error) is StoreMisconfigured
    assert "Check the name of the bucket" in error.hint


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here")
    place = tmp_path_factory.mktemp("tls")
    subject = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, "-keyout", place / "key.pem", "-out", place / "cert.pem"]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "cert.pem", place / "key.pem")
    return context, place / "cert.pem"


def test_a_certificate_nobody_vouches_for_is_a_misconfiguration(canned, certificate):
    there = canned(ok, tls=certificate[0])
    error = error_of("put", open_store(settings(there.url, "bucket")))
    assert type(error) is StoreMisconfigured
    assert "certificate" in error.message
    assert "WALE_S3_CA_FILE" in error.hint
    assert there.asked == []


def test_over_tls_a_body_is_not_hashed_a_second_time(canned, certificate):
    there = canned(ok, tls=certificate[0])
    open_store(settings(there.url, "bucket", WALE_S3_CA_FILE=str(certificate[1]))).put("key", [b"123456789"])
    assert there.asked[0].headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert there.asked[0].headers["x-amz-checksum-crc32c"] == "4waSgw=="
    assert there.asked[0].body == b"123456789"


def test_a_file_of_certificates_that_is_not_there_is_a_configuration_error(aws):
    with pytest.raises(ConfigurationError, match="WALE_S3_CA_FILE"):
        open_store(settings("https://127.0.0.1:1", "bucket", WALE_S3_CA_FILE="/no/such/file"))


# ---- credentials


def test_opening_a_store_asks_nobody(aws, canned):
    metadata = canned((404, {}, b""))
    aws.delenv("AWS_ACCESS_KEY_ID")
    aws.setenv("AWS_EC2_METADATA_DISABLED", "false")
    aws.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url)
    there = canned(ok)
    store = open_store(settings(there.url, "bucket"))
    assert there.asked == metadata.asked == []
    assert type(error_of("get", store)) is StoreMisconfigured
    assert metadata.asked
    assert there.asked == []


@pytest.mark.parametrize("verb", ["put", "stat", "list", "delete"])
def test_no_credentials_are_a_misconfiguration(aws, verb):
    aws.delenv("AWS_ACCESS_KEY_ID")
    aws.delenv("AWS_SECRET_ACCESS_KEY")
    error = error_of(verb, open_store(settings("http://127.0.0.1:1", "bucket")))
    assert type(error) is StoreMisconfigured
    assert "no credentials for s3://bucket/some/prefix" in told(error)
    assert "AWS_ACCESS_KEY_ID" in told(error)


def test_half_a_pair_of_keys_is_a_misconfiguration(aws):
    aws.delenv("AWS_SECRET_ACCESS_KEY")
    error = error_of("get", open_store(settings("http://127.0.0.1:1", "bucket")))
    assert type(error) is StoreMisconfigured
    assert "AWS_SECRET_ACCESS_KEY" in told(error)


def test_a_profile_that_is_not_there_is_a_misconfiguration(aws):
    aws.setenv("AWS_PROFILE", "nowhere")
    error = error_of("get", open_store(settings("http://127.0.0.1:1", "bucket")))
    assert type(error) is StoreMisconfigured
    assert "nowhere" in told(error)


@pytest.mark.parametrize("name", ["AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"])
def test_a_session_token_goes_along_and_is_kept_secret(canned, aws, name, monkeypatch):
    monkeypatch.setattr(log, "_secrets", set())
    aws.setenv(name, "token-of-the-session")
    there = canned(ok)
    open_store(settings(there.url, "bucket")).put("key", [b"1"])
    assert there.asked[0].headers["x-amz-security-token"] == "token-of-the-session"
    assert log.masked(f"{SECRET} token-of-the-session") == "******** ********"


def metadata_service(asked):
    """What an EC2 instance's metadata service says."""
    if asked.path == "/latest/api/token":
        return 200, {}, b"imds-token"
    if asked.path == "/latest/meta-data/iam/security-credentials/":
        return 200, {}, b"the-role"
    expires = (datetime.now(UTC) + timedelta(hours=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    keys = {"AccessKeyId": "ROLEKEY", "SecretAccessKey": "role-secret", "Token": "role-token", "Expiration": expires}
    return 200, {}, json.dumps({"Code": "Success", "Type": "AWS-HMAC", "LastUpdated": expires, **keys}).encode()


@pytest.mark.parametrize(("chosen", "key"), [({}, "AKIDTESTS"), ({"AWS_INSTANCE_PROFILE": "true"}, "ROLEKEY")])
def test_an_instance_profile_is_taken_when_it_is_asked_for_whatever_else_is_set(canned, aws, chosen, key):
    aws.setenv("AWS_EC2_METADATA_DISABLED", "false")
    aws.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", canned(metadata_service).url)
    there = canned(ok)
    open_store(settings(there.url, "bucket", **chosen)).put("key", [b"1"])
    assert f"Credential={key}/" in there.asked[0].headers["authorization"]


def test_a_machine_without_keys_uses_its_role(canned, aws):
    aws.delenv("AWS_ACCESS_KEY_ID")
    aws.delenv("AWS_SECRET_ACCESS_KEY")
    aws.setenv("AWS_EC2_METADATA_DISABLED", "false")
    aws.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", canned(metadata_service).url)
    there = canned(ok)
    open_store(settings(there.url, "bucket")).put("key", [b"1"])
    assert there.asked[0].headers["x-amz-security-token"] == "role-token"


def test_an_instance_without_a_role_is_a_misconfiguration(canned, aws):
    aws.setenv("AWS_EC2_METADATA_DISABLED", "false")
    aws.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", canned((404, {}, b"")).url)
    error = error_of("get", open_store(settings("http://127.0.0.1:1", "bucket", AWS_INSTANCE_PROFILE="true")))
    assert type(error) is StoreMisconfigured
    assert "no credentials" in error.message


@pytest.mark.parametrize(("status", "kind"), [(403, StoreMisconfigured), (503, StoreUnavailable)])
def test_the_token_service_may_refuse_a_web_identity(canned, aws, tmp_path, status, kind):
    aws.delenv("AWS_ACCESS_KEY_ID")
    aws.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "token").write_text("identity-token")
    content = b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>Not authorized.</Message></Error></ErrorResponse>"
    for name, value in {
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/backup",
        "AWS_ENDPOINT_URL_STS": canned((status, {}, content)).url,
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        aws.setenv(name, value)
    error = error_of("get", one_try("http://127.0.0.1:1"))
    assert type(error) is kind
    assert "credentials" in error.message
    assert "identity-token" not in told(error)


def test_a_container_that_cannot_get_its_credentials_now_may_get_them_later(canned, aws):
    aws.delenv("AWS_ACCESS_KEY_ID")
    aws.delenv("AWS_SECRET_ACCESS_KEY")
    aws.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", canned((404, {}, b"no words")).url + "/credentials")
    error = error_of("get", one_try("http://127.0.0.1:1"))
    assert type(error) is StoreUnavailable
    assert "container-role" in error.detail


# ---- start-up and threads


def test_one_client_serves_all_threads(store, proxy):
    store.put("key", [bytes(MIB)])
    results = []
    threads = [threading.Thread(target=lambda: results.append(len(read(store, "key")))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [MIB] * 8


@pytest.mark.parametrize("patch", ["", "from gevent import monkey; monkey.patch_all(os=False, signal=False)"])
def test_parts_go_up_side_by_side_with_threads_and_with_greenlets(proxy, bucket, patch):
    chosen = settings(proxy.url, bucket)._environ
    proxy.add(Rule(Delay(0.3), method="PUT"))
    script = f"""
{patch}
from wal_e.blobstore.registry import open_store
from wal_e.settings import Settings
store = open_store(Settings({dict(chosen)!r}))
content = [bytes([number]) * (1 << 20) for number in range(40)]
store.create("big", iter(content))
assert b"".join(store.get("big")) == b"".join(content)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert proxy.overlap > 2


def test_opening_a_store_loads_no_more_than_it_needs(aws):
    script = "import sys, wal_e.blobstore.s3.service; print([name for name in ('boto3', 's3transfer', 'gevent', 'awscrt') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
