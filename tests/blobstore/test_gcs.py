"""What is special to Google Cloud Storage: its errors, credentials, resumable uploads, generations, batches and names."""

import gzip
import http.server
import json
import os
import ssl
import subprocess
import sys
import time
import tracemalloc
import urllib.request
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from threading import Thread

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from fault_proxy import FaultProxy
from fault_rules import Answer, Corrupt, Cut, Delay, LoseAnswer, Rule, Slow, too_many_requests, truncate
from fix_gcs import gcs_server, new_bucket
from servers import gcs_token

from wal_e import log
from wal_e.blobstore.leading_slash import LeadingSlash
from wal_e.blobstore.registry import open_store
from wal_e.errors import BlobExists, BlobNotFound, DamageError, StoreError, StoreForbidden, StoreMisconfigured, StoreUnavailable
from wal_e.settings import Settings

MIB = 1 << 20
SINGLE = r"uploadType=multipart"
BEGIN = r"uploadType=resumable(?!.*upload_id)"
SESSION = r"upload_id="
MEDIA = r"alt=media"


def settings_of(bucket, path="/p", **variables):
    return Settings({"WALE_GS_PREFIX": f"gs://{bucket}{path}", "WALE_PUSH_DEADLINE": "20", "WALE_FETCH_DEADLINE": "20", **variables})


def refusal(status, reason="", message="", **headers):
    error = {"code": status, "message": message, "errors": [{"domain": "global", "reason": reason, "message": message}]}
    return Answer(status, json.dumps({"error": error}).encode(), {"Content-Type": "application/json", "X-GUploader-UploadID": "req-1", **headers})


def large(mib=20):
    return [bytes([number]) * MIB for number in range(mib)]


def read(store, key, **part):
    return b"".join(store.get(key, **part))


def unfinished_uploads():
    with urllib.request.urlopen(gcs_server().url + "/uploads") as answer:
        return json.load(answer)


@pytest.fixture
def bucket():
    return new_bucket()


@pytest.fixture
def proxy():
    with FaultProxy(gcs_server().port) as proxy:
        yield proxy


@pytest.fixture
def store(proxy, bucket, monkeypatch):
    """A store behind the proxy, that has already decided about the leading slash."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
    store = open_store(settings_of(bucket))
    assert list(store.list()) == []
    proxy.clear()
    return store


@pytest.fixture
def tokens(tmp_path):
    with gcs_token.running(tmp_path) as endpoint:
        yield endpoint


@pytest.fixture
def as_account(bucket, tokens, monkeypatch):
    """Open a store with the key file of an account."""

    def opened(account, port=tokens.port, api=""):
        monkeypatch.setenv("API_ENDPOINT_OVERRIDE", api or gcs_server().url)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tokens._replace(port=port).key_file(account)))
        return open_store(settings_of(bucket))

    return opened


def verbs(store):
    return {
        "put": lambda: store.put("k", [b"1"]),
        "put large": lambda: store.put("k", large()),
        "create": lambda: store.create("k", [b"1"]),
        "get": lambda: read(store, "k"),
        "stat": lambda: store.stat("k"),
        "list": lambda: list(store.list()),
        "delete": lambda: store.delete(["k"]),
    }


# What a new store does


def test_a_new_store_asks_nothing_and_reads_no_credentials(proxy, monkeypatch):
    monkeypatch.setenv("API_ENDPOINT_OVERRIDE", proxy.url)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    store = open_store(settings_of("bucket"))
    assert proxy.log == []
    with pytest.raises(StoreMisconfigured, match="no usable Google credentials"):
        store.stat("k")


def test_what_a_segment_does_not_need_is_not_imported():
    code = "import sys, wal_e.blobstore.gcs; print([name for name in ('grpc', 'gevent', 'google.cloud.storage._experimental') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_content_types_tell_json_and_text_from_the_rest(store, bucket):
    for key in ("a.json", "b.txt", "c.lzo"):
        store.put(key, [b"1"])
    store.put("large.json", large())
    with urllib.request.urlopen(f"{gcs_server().url}/storage/v1/b/{bucket}/o") as answer:
        types = {each["name"]: each["contentType"] for each in json.load(answer)["items"]}
    assert types == {"p/a.json": "application/json", "p/b.txt": "text/plain", "p/c.lzo": "application/octet-stream", "p/large.json": "application/json"}


def test_connections_are_used_again(store, proxy):
    store.put("k", [b"x" * 3 * MIB])
    for _ in range(4):
        read(store, "k")
        read(store, "k", start=7)
        store.stat("k")
    assert {record.connection for record in proxy.log} == {1}


def test_a_reader_that_leaves_closes_its_connection(store, proxy):
    store.put("k", large())
    service = store._service
    opened = service.open("k", 0, None, None)
    next(opened.chunks)
    opened.chunks.close()
    deadline = time.monotonic() + 10
    while not any(record.broken for record in list(proxy.log)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Names


def test_an_archive_whose_names_begin_with_a_slash_goes_on_so(bucket, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server().url)
    request = urllib.request.Request(f"{gcs_server().url}/upload/storage/v1/b/{bucket}/o?uploadType=media&name=/p/wal_005/1.lzo", b"old", method="POST")
    urllib.request.urlopen(request).close()
    store = open_store(settings_of(bucket))
    assert read(store, "wal_005/1.lzo") == b"old"
    with pytest.raises(BlobExists):
        store.create("wal_005/1.lzo", [b"new"])
    store.put("wal_005/2.lzo", [b"new"])
    assert [blob.key for blob in store.list()] == ["wal_005/1.lzo", "wal_005/2.lzo"]
    whole_bucket = open_store(settings_of(bucket, ""))
    assert [blob.key for blob in whole_bucket.list()] == ["p/wal_005/1.lzo", "p/wal_005/2.lzo"]
    store.delete(["wal_005/1.lzo"])
    assert [blob.key for blob in store.list()] == ["wal_005/2.lzo"]


@pytest.mark.parametrize("path", ["", "/p", "/p/q"])
def test_a_new_prefix_has_names_without_a_slash_in_front(bucket, path, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server().url)
    store = open_store(settings_of(bucket, path))
    store.put("k/1", [b"1"])
    with urllib.request.urlopen(f"{gcs_server().url}/storage/v1/b/{bucket}/o") as answer:
        assert [each["name"] for each in json.load(answer)["items"]] == [f"{path}/k/1".lstrip("/")]
    assert [blob.key for blob in store.list("k")] == ["k/1"]
    assert store.url_of("k/1") == f"gs://{bucket}{path}/k/1"


def test_the_slash_is_decided_once_by_all_threads_together():
    asked = []

    def any_object(beginning):
        asked.append(beginning)
        time.sleep(0.1)  # while the others come to the door
        return False

    slash = LeadingSlash("/p", any_object)
    threads = [Thread(target=slash.root) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (slash.root(), asked) == ("p/", ["/p/"])


def test_the_slash_is_not_decided_by_a_question_that_failed():
    answers = [StoreUnavailable("away"), True]

    def any_object(beginning):
        answer = answers.pop(0)
        if isinstance(answer, StoreError):
            raise answer
        return answer

    slash = LeadingSlash("/p", any_object)
    with pytest.raises(StoreUnavailable):
        slash.root()
    assert slash.root() == "/p/"


# Listing and deleting


def test_a_listing_goes_through_pages_in_byte_order(store, proxy, monkeypatch):
    monkeypatch.setattr("wal_e.blobstore.gcs.service._PAGE", 3)
    wanted = sorted([f"a{number}" for number in range(7)] + ["é", "z", "~"], key=str.encode)
    for key in reversed(wanted):
        store.put(key, [b""])
    proxy.clear()
    assert [blob.key for blob in store.list()] == wanted
    assert len(proxy.log) == 4


def test_deletes_go_a_hundred_at_a_time(store, proxy):
    store.put("last", [b"1"])
    proxy.clear()
    store.delete([f"absent{number}" for number in range(249)] + ["last"])
    assert [(record.method, record.path) for record in proxy.log] == [("POST", "/batch/storage/v1")] * 3
    assert list(store.list()) == []


def batch_answer(*answers):
    parts = []
    for number, (status, reason, message) in enumerate(answers):
        body = refusal(status, reason, message).content.decode() if status >= 400 else ""
        head = f"Content-Type: application/http\r\nContent-ID: <response-{number}>"
        parts.append(f"--batch_x\r\n{head}\r\n\r\nHTTP/1.1 {status} Said\r\nContent-Length: {len(body)}\r\n\r\n{body}\r\n")
    return Answer(200, ("".join(parts) + "--batch_x--").encode(), {"Content-Type": "multipart/mixed; boundary=batch_x"})


def test_of_a_batch_the_key_that_failed_is_named_and_no_other(store, proxy):
    forbidden = (403, "forbidden", "wal@tests does not have storage.objects.delete access to the Google Cloud Storage object.")
    proxy.add(Rule(batch_answer((204, "", ""), (404, "notFound", "No such object: b/p/k1"), forbidden, (204, "", "")), path="/batch"))
    with pytest.raises(StoreForbidden, match="could not delete all") as caught:
        store.delete(["k0", "k1", "k2", "k3"])
    assert "1 left: k2." in caught.value.detail
    assert "not allowed to delete" in caught.value.detail
    assert len(proxy.log) == 1


def test_of_a_batch_what_failed_for_a_moment_is_tried_again_alone(store, proxy):
    store.put("k1", [b"1"])
    proxy.add(Rule(batch_answer((204, "", ""), (503, "backendError", "Backend Error")), path="/batch", limit=1))
    store.delete(["k0", "k1"])
    assert list(store.list()) == []


def test_a_batch_in_a_bucket_that_is_gone_is_an_error(store, proxy):
    proxy.add(Rule(batch_answer((404, "notFound", "The specified bucket does not exist.")), path="/batch"))
    with pytest.raises(StoreMisconfigured):
        store.delete(["k"])


def test_a_batch_that_is_answered_by_half_is_asked_again(store, proxy):
    store.put("k1", [b"1"])
    proxy.add(Rule(batch_answer((204, "", "")), path="/batch", limit=1))
    store.delete(["k0", "k1"])
    assert list(store.list()) == []


# Errors of a real server


@pytest.mark.parametrize("name", ["_bucket", "bucket-"])
def test_a_name_that_no_bucket_can_have_is_bad_configuration(name, proxy, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
    with pytest.raises(StoreMisconfigured, match="does not name a bucket") as caught:
        open_store(settings_of(name)).stat("k")
    assert "WALE_GS_PREFIX" in caught.value.hint
    assert proxy.log == []


@pytest.mark.parametrize("verb", ["put", "put large", "create", "get", "stat", "list", "delete"])
def test_a_bucket_that_does_not_exist_is_said_to_be_so(verb, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server().url)
    with pytest.raises(StoreMisconfigured, match=r"the bucket of .* does not exist") as caught:
        verbs(open_store(settings_of("no-such-bucket")))[verb]()
    assert "WALE_GS_PREFIX" in caught.value.hint


def test_a_404_without_words_is_not_taken_for_an_absent_key(proxy, bucket, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
    proxy.add(Rule(Answer(404)))
    with pytest.raises(StoreMisconfigured, match=r"the bucket of .* does not exist"):
        open_store(settings_of(bucket)).stat("k")


@pytest.mark.parametrize(
    ("account", "verb", "operation"), [("reader", "put", "write"), ("reader", "put large", "write"), ("reader", "create", "write"), ("nobody", "list", "list")]
)
def test_an_account_without_a_right_is_told_which(account, verb, operation, as_account, bucket):
    with pytest.raises(StoreForbidden, match=f"not allowed to {operation} gs://{bucket}/p") as caught:
        verbs(as_account(account))[verb]()
    assert f"storage.objects.{'create' if operation == 'write' else operation}" in caught.value.hint
    assert not caught.value.transient


def test_an_account_that_may_only_read_reads(as_account):
    as_account("owner").put("k", [b"1"])
    assert read(as_account("reader"), "k") == b"1"


def test_without_the_right_to_list_nothing_is_said_to_be_absent(as_account):
    with pytest.raises(StoreForbidden, match="not allowed to list"):
        as_account("writer").stat("k")


def test_a_read_that_is_forbidden_says_that_absence_looks_the_same(store, proxy):
    proxy.add(Rule(Answer(403, b"wal@tests does not have storage.objects.get access to the Google Cloud Storage object."), path=MEDIA))
    with pytest.raises(StoreForbidden, match=r"not allowed to read gs://.*/p/k") as caught:
        read(store, "k")
    assert "storage.objects.list" in caught.value.hint
    assert len(proxy.log) == 1


def test_a_token_that_is_not_accepted_is_bad_configuration(as_account):
    with pytest.raises(StoreMisconfigured, match="credentials are not accepted"):
        as_account("expired").stat("k")


CANNED = [
    (
        403,
        "accessNotConfigured",
        "Cloud Storage JSON API has not been used before or it is disabled.",
        StoreMisconfigured,
        "storage.googleapis.com",
    ),
    (403, "accountDisabled", "The billing account for the owning project is disabled in state absent", StoreMisconfigured, "billing"),
    (403, "forbidden", "The billing account for the owning project is disabled in state closed", StoreMisconfigured, "billing"),
    (400, "required", "Bucket is a requester pays bucket but no user project provided.", StoreMisconfigured, "GOOGLE_CLOUD_QUOTA_PROJECT"),
    (400, "invalid", "Invalid bucket name: 'B'", StoreMisconfigured, "WALE_GS_PREFIX"),
    (403, "insufficientPermissions", "Insufficient Permission", StoreForbidden, "access scopes"),
    (403, "retentionPolicyNotMet", "Object 'b/k' is subject to bucket's retention policy and cannot be deleted or overwritten", StoreForbidden, "retention"),
    (403, "forbidden", "wal@tests does not have storage.objects.create access", StoreForbidden, "storage.objects.create"),
    (401, "authError", "Invalid Credentials", StoreMisconfigured, ""),
    (412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.", BlobExists, ""),
    (413, "uploadTooLarge", "Payload too large", StoreError, ""),
]


@pytest.mark.parametrize(("status", "reason", "message", "kind", "hint"), CANNED)
def test_a_refusal_is_one_kind_of_error_with_a_hint_and_is_not_tried_again(store, proxy, bucket, status, reason, message, kind, hint):
    proxy.add(Rule(refusal(status, reason, message), path=SINGLE))
    with pytest.raises(StoreError) as caught:
        store.put("k", [b"1"])
    assert type(caught.value) is (kind if status != 401 else StoreMisconfigured)
    assert hint in caught.value.hint
    assert f"gs://{bucket}/p/k" in caught.value.message
    if status != 401:
        assert message.rstrip(".") in caught.value.detail
        assert "Request id: req-1." in caught.value.detail
    assert len(proxy.log) == 1


TRANSIENT = [
    refusal(503, "backendError", "Backend Error"),
    refusal(500, "internalError", "Internal"),
    refusal(429, "rateLimitExceeded", "The object p/k exceeded the rate limit for object mutation operations."),
    refusal(403, "userRateLimitExceeded", "The total number of changes to the object k exceeds the rate limit."),
    refusal(408, "", ""),
    Answer(502, b"<html>Bad gateway</html>"),
    LoseAnswer(),
    LoseAnswer("fin"),
]


@pytest.mark.parametrize("fault", TRANSIENT, ids=lambda fault: f"{type(fault).__name__}-{getattr(fault, 'status', fault)}")
@pytest.mark.parametrize("verb", ["put", "put large", "create", "get", "stat", "list", "delete"])
def test_trouble_that_passes_is_tried_again_and_not_in_silence(store, proxy, fault, verb, capsys):
    store.put("k", [b"1"] if verb != "create" else [b"other"])
    if verb == "create":
        store.delete(["k"])
    proxy.clear()
    proxy.add(Rule(fault, limit=1))
    verbs(store)[verb]()
    assert proxy.log[0].faults == [fault]
    assert len(proxy.log) > 1
    assert capsys.readouterr().err.count("trying again") == 1


def test_a_wait_that_google_asks_for_is_kept(store, proxy):
    proxy.add(Rule(too_many_requests(1), limit=1))
    store.put("k", [b"1"])
    first, second = proxy.log
    assert second.start - first.start >= 1


def test_trouble_that_stays_is_named_when_the_attempts_are_used_up(proxy, bucket, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
    proxy.add(Rule(refusal(503, "backendError", "Backend Error", **{"Retry-After": "0"})))
    with pytest.raises(StoreUnavailable, match=r"could not list .* for the moment") as caught:
        open_store(settings_of(bucket, WALE_RETRIES="3")).stat("k")
    assert len(proxy.log) == 3
    assert caught.value.wait_s == 0
    assert "503 backendError: Backend Error. Request id: req-1." in caught.value.detail


def test_a_server_that_refuses_connections_is_away(store, proxy):
    with proxy.refusing(), pytest.raises(StoreUnavailable, match="no answer") as caught:
        open_store(settings_of("bucket", WALE_RETRIES="2")).stat("k")
    assert "Connection refused" in caught.value.detail


def test_a_server_that_says_nothing_is_given_up_within_the_read_timeout(proxy, bucket, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
    proxy.add(Rule(Delay(1.5)))
    with pytest.raises(StoreUnavailable, match="no answer") as caught:
        open_store(settings_of(bucket, WALE_RETRIES="1", WALE_READ_TIMEOUT="0.2")).stat("k")
    assert "timed out" in caught.value.detail


@pytest.mark.parametrize("fault", [LoseAnswer(), LoseAnswer("fin"), Cut(1000, of="request")], ids=["reset", "closed", "broken-pipe"])
def test_after_a_connection_that_broke_without_an_answer_the_next_attempt_comes_at_once(store, proxy, fault):
    proxy.add(Rule(fault, method="POST", path=SINGLE))
    with pytest.raises(StoreUnavailable) as caught:
        store._service.write("k", b"1" * MIB, 0, "put")
    assert caught.value.wait_s == 0


@pytest.mark.parametrize("fault", [LoseAnswer(), Answer(404, b"<p>The requested URL /upload?upload_id=secret was not found"), refusal(503), refusal(403)])
def test_the_address_of_an_upload_session_is_in_no_message(proxy, bucket, monkeypatch, fault, capsys):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
    proxy.add(Rule(fault, method="PUT|DELETE", path=SESSION))
    with pytest.raises(StoreError) as caught:
        open_store(settings_of(bucket, WALE_RETRIES="2")).put("k", large())
    said = f"{caught.value} {caught.value.hint} {capsys.readouterr().err}"
    assert f"gs://{bucket}/p/k" in said
    assert "upload_id" not in said


@pytest.fixture
def encrypting(tmp_path):
    """A server with a certificate that nobody signed, and the certificate's path."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
    path = tmp_path / "certificate.pem"
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Transcoding) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.handle_error = lambda *_: None  # a client that hangs up is what this is about
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}", path
        server.shutdown()
        thread.join()


def test_a_certificate_that_is_not_trusted_is_bad_configuration(encrypting, monkeypatch):
    url, certificate = encrypting
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    with pytest.raises(StoreMisconfigured, match="certificate is not trusted") as caught:
        open_store(settings_of("bucket")).stat("k")
    assert "REQUESTS_CA_BUNDLE" in caught.value.hint
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    assert read(open_store(settings_of("bucket")), "k") == PACKED


# Reading


def test_a_download_that_is_cut_goes_on_where_it_stopped_in_the_same_generation(store, proxy):
    store.put("k", large())
    proxy.clear()
    proxy.add(Rule(Cut(5 * MIB), method="GET", path=MEDIA, limit=2), Rule(truncate(3 * MIB), method="GET", path=MEDIA, nth=3))
    assert read(store, "k") == b"".join(large())
    assert len(proxy.log) == 4
    assert all("generation=" in record.path for record in proxy.log[1:])
    assert sum(record.bytes_out for record in proxy.log) < 30 * MIB


def test_a_range_that_is_cut_ends_where_it_should(store, proxy):
    store.put("k", large())
    proxy.add(Rule(Cut(2 * MIB), method="GET", path=MEDIA, limit=1))
    assert read(store, "k", start=MIB - 3, length=4 * MIB) == b"".join(large())[MIB - 3 : 5 * MIB - 3]


def test_two_versions_never_mix(store, proxy):
    store.put("k", large())
    proxy.add(Rule(Cut(5 * MIB), method="GET", path=MEDIA, limit=1))
    chunks = store.get("k")
    next(chunks)
    store.put("k", [b"new"])
    with pytest.raises(StoreError, match="replaced or deleted while it was read") as caught:
        list(chunks)
    assert not isinstance(caught.value, BlobNotFound)


def test_a_small_blob_that_arrives_changed_is_read_again(store, proxy):
    store.put("k", [b"content"])
    proxy.clear()
    proxy.add(Rule(Corrupt(3), method="GET", path=MEDIA, limit=1))
    assert read(store, "k") == b"content"
    assert len(proxy.log) == 2


def test_a_large_blob_that_arrives_changed_is_damage(store, proxy):
    store.put("k", large())
    proxy.add(Rule(Corrupt(3 * MIB), method="GET", path=MEDIA, limit=1))
    with pytest.raises(DamageError, match="k did not arrive as it was stored"):
        read(store, "k")


class Transcoding(http.server.BaseHTTPRequestHandler):
    """Serves one object that is marked as packed, and unpacks it for a client that does not take gzip, as Google does."""

    def do_GET(self):
        packed = "gzip" in self.headers.get("Accept-Encoding", "")
        media = "alt=media" in self.path
        self.send_response(200)
        self.send_header("X-Goog-Generation", "1")
        if media and packed:
            self.send_header("Content-Encoding", "gzip")
        body = b"{}" if not media else PACKED if packed else gzip.decompress(PACKED)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


PACKED = gzip.compress(b"content" * 100)


def test_bytes_come_as_they_are_stored_even_if_marked_as_gzip(monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Transcoding) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
        try:
            assert read(open_store(settings_of("bucket")), "k") == PACKED
        finally:
            server.shutdown()
            thread.join()


def test_a_server_that_ignores_a_range_is_not_believed(store, proxy):
    store.put("k", [b"content"])
    proxy.add(Rule(Answer(200, b"content", {"X-Goog-Generation": "1"}), path=MEDIA))
    with pytest.raises(StoreError) as caught:
        read(store, "k", start=3)
    assert "none of Google Cloud Storage's" in caught.value.detail


@pytest.mark.parametrize("body", [b"<html>Log in, please</html>", b"[]"], ids=["html", "json"])
@pytest.mark.parametrize("verb", ["put", "get", "stat", "list", "put large"])
def test_a_portal_that_answers_in_its_place_is_not_believed(store, proxy, verb, body):
    proxy.add(Rule(Answer(200, body)))
    with pytest.raises(StoreError) as caught:
        verbs(store)[verb]()
    assert "none of Google Cloud Storage's" in caught.value.detail


@pytest.mark.parametrize("verb", ["put", "get", "stat", "list", "delete", "put large"])
def test_a_refusal_in_another_form_of_json_is_one_all_the_same(store, proxy, verb):
    proxy.add(Rule(Answer(403, b'{"error": "denied"}')))
    with pytest.raises(StoreError) as caught:
        verbs(store)[verb]()
    assert not isinstance(caught.value, BlobNotFound)
    assert not caught.value.transient


# Writing


@pytest.mark.parametrize(("size", "requests"), [(0, 1), (8 * MIB, 1), (8 * MIB + 1, 2), (16 * MIB, 2)])
def test_a_segment_takes_one_request_or_two(store, proxy, size, requests):
    content = os.urandom(size)
    store.create("k", [content])
    assert len(proxy.log) == requests
    assert read(store, "k") == content
    with pytest.raises(BlobExists):
        store.create("k", [content[1:]])


def test_a_segment_of_two_requests_that_was_changed_on_its_way_is_sent_again(store, proxy):
    proxy.add(Rule(Corrupt(5000, of="request"), method="PUT", path=SESSION, limit=1))
    content = os.urandom(12 * MIB)
    store.create("k", [content])
    assert [record.status for record in proxy.log] == [200, 400, 200, 200]
    assert read(store, "k") == content


@pytest.mark.parametrize("fault", [LoseAnswer(), Answer(308), Answer(308, b"", {"Range": "bytes=0-262143"}), refusal(503)], ids=str)
def test_a_segment_of_two_requests_that_was_not_kept_whole_is_sent_again(store, proxy, fault):
    proxy.add(Rule(fault, method="PUT", path=SESSION, nth=1))
    content = os.urandom(12 * MIB)
    store.create("k", [content])
    assert proxy.log[1].faults == [fault]
    assert read(store, "k") == content


def test_an_answer_that_names_no_generation_deletes_nothing(store, proxy):
    store.put("k", [b"theirs"])
    proxy.clear()
    proxy.add(Rule(Answer(200, b"{}"), method="PUT", path=SESSION, nth=3))
    with pytest.raises(StoreError) as caught:
        store.put("k", large())
    assert "none of Google Cloud Storage's" in caught.value.detail
    assert read(store, "k") == b"theirs"


def test_a_small_body_changed_on_its_way_is_sent_again(store, proxy):
    proxy.add(Rule(Corrupt(1000, of="request"), method="POST", path=SINGLE, limit=1))
    store.put("k", [b"content" * 1000])
    assert proxy.log[0].status == 400
    assert read(store, "k") == b"content" * 1000


def test_a_large_body_changed_on_its_way_is_not_stored_and_the_whole_may_be_pushed_again(store, proxy):
    proxy.add(Rule(Corrupt(1000, of="request"), method="PUT", path=SESSION, nth=2))
    with pytest.raises(StoreUnavailable, match="was lost"):
        store.put("upload", large(30))
    assert list(store.list()) == []
    assert "p/upload" not in unfinished_uploads()
    assert len(proxy.log) < 12


def test_a_server_that_stores_changed_bytes_unnoticed_loses_the_object_again(store, proxy, monkeypatch):
    monkeypatch.setattr("wal_e.blobstore.gcs.upload.FINAL_CHECKSUM", "X-Unknown")
    proxy.add(Rule(Corrupt(1000, of="request"), method="PUT", path=SESSION, nth=2))
    with pytest.raises(StoreUnavailable, match="was changed on its way"):
        store.put("k", large(30))
    assert list(store.list()) == []


@pytest.mark.parametrize("content", [[b"small"], large()], ids=["small", "large"])
def test_a_create_whose_answer_was_lost_ends_well(store, proxy, content):
    proxy.add(Rule(LoseAnswer(), method="POST", path=SINGLE, limit=1))
    proxy.add(Rule(LoseAnswer(), method="PUT", path=SESSION, nth=3))
    assert store.create("k", content) == sum(map(len, content))
    assert any(record.faults for record in proxy.log)
    assert read(store, "k") == b"".join(content)


def test_a_create_of_another_content_meets_what_is_there_although_an_answer_was_lost(store, proxy):
    store.put("k", [b"theirs"])
    proxy.add(Rule(LoseAnswer(), method="POST", path=SINGLE, limit=1))
    with pytest.raises(BlobExists):
        store.create("k", [b"mine"])
    assert read(store, "k") == b"theirs"


@pytest.mark.parametrize("fault", [LoseAnswer(), Cut(3 * MIB, of="request"), refusal(503)], ids=["answer-lost", "cut-halfway", "503"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_an_upload_asks_how_far_it_is_and_goes_on_there(store, proxy, fault, nth):
    proxy.add(Rule(fault, method="PUT", path=SESSION, nth=nth))
    store.put("k", large(30))
    assert sha256(read(store, "k")).digest() == sha256(b"".join(large(30))).digest()
    sent = sum(record.bytes_in for record in proxy.log if record.method == "PUT")
    assert sent <= 30 * MIB + (0 if isinstance(fault, LoseAnswer) else 8 * MIB)


def test_an_upload_sends_again_what_the_service_did_not_keep(store, proxy):
    kept = Answer(308, b"", {"Range": f"bytes=0-{8 * MIB - 256 * 1024 - 1}"})
    proxy.add(Rule(kept, method="PUT", path=SESSION, nth=1))
    with pytest.raises(StoreError):  # the server behind the proxy has nothing of the first piece
        store.put("k", large())
    assert [record.bytes_in for record in proxy.log if record.method == "PUT"][:2] == [8 * MIB, 256 * 1024]


@pytest.mark.parametrize("status", [404, 410])
def test_a_session_that_is_gone_fails_at_once_so_that_the_whole_may_be_pushed_again(store, proxy, status):
    proxy.add(Rule(Answer(status, b"Gone"), method="PUT", path=SESSION, nth=2))
    with pytest.raises(StoreUnavailable, match=r"the upload of gs://.*/p/upload was lost") as caught:
        store.put("upload", large(30))
    assert caught.value.transient
    assert [record.method for record in proxy.log] == ["POST", "PUT", "PUT", "DELETE"]
    assert "p/upload" not in unfinished_uploads()


def test_an_upload_that_fails_cancels_its_session(store, proxy, capsys):
    def chunks():
        yield from large()
        raise RuntimeError("the codec died")

    with pytest.raises(RuntimeError):
        store.put("upload", chunks())
    assert proxy.log[-1].method == "DELETE"
    assert proxy.log[-1].status == 499
    assert capsys.readouterr().err == ""
    assert "p/upload" not in unfinished_uploads()
    assert list(store.list()) == []


def test_an_upload_that_is_gone_already_is_cancelled_without_an_error(store, proxy):
    upload = store._service.begin("upload", "put")
    upload.abort()
    upload.abort()
    assert [record.status for record in proxy.log] == [200, 499, 404]


def test_a_killed_upload_leaves_nothing_to_clean(store, proxy):
    proxy.add(Rule(LoseAnswer(), method="DELETE"))

    def chunks():
        yield from large()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put("k", chunks())
    assert list(store.list()) == list(store.leftovers()) == []


def test_a_create_that_loses_at_the_end_of_a_large_upload_leaves_what_is_there(store):
    def chunks():
        yield from large()
        store.create("upload", [b"theirs"])

    with pytest.raises(BlobExists):
        store.create("upload", chunks())
    assert read(store, "upload") == b"theirs"
    assert "p/upload" not in unfinished_uploads()


def test_a_big_upload_and_download_take_little_memory(bucket, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server().url)
    store = open_store(settings_of(bucket))
    piece = os.urandom(256 * 1024)
    store.put("warm", [piece])
    tracemalloc.start()
    try:
        store.put("k", (piece for _ in range(400)))
        up = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        assert sum(map(len, store.get("k"))) == 400 * len(piece)
        down = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert up < 45 * MIB
    assert down < 6 * MIB


def test_a_slow_line_may_take_its_time_for_a_body(proxy, bucket, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
    proxy.add(Rule(Slow(3 * MIB), method="POST", path=SINGLE))
    store = open_store(settings_of(bucket, WALE_RETRIES="1", WALE_CONNECT_TIMEOUT="0.5", WALE_READ_TIMEOUT="10"))
    store.put("k", [bytes(8 * MIB)])
    assert read(store, "k") == bytes(8 * MIB)


# Credentials


def test_a_service_account_needs_only_its_key_file(as_account):
    store = as_account("owner")
    store.put("k", [b"1"])
    assert read(store, "k") == b"1"


@pytest.mark.parametrize("content", [[b"small"], large()], ids=["small", "large"])
def test_a_token_that_ends_early_is_renewed_on_the_way(as_account, proxy, content):
    store = as_account("owner", api=proxy.url)
    proxy.add(Rule(refusal(401, "authError", "Invalid Credentials"), every=2))
    store.put("k", content)
    proxy.clear()
    assert read(store, "k") == b"".join(content)


def test_threads_ask_for_one_token_together(as_account, tokens):
    with FaultProxy(tokens.port) as proxy:
        proxy.add(Rule(Delay(0.2)))
        service = as_account("owner", port=proxy.port)._service
        threads = [Thread(target=service._any_object, args=("k",)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [record.path for record in proxy.log] == ["/token"]


def test_googles_library_starts_no_threads(as_account, monkeypatch):
    started = []
    store = as_account("owner")
    start = Thread.start
    monkeypatch.setattr(Thread, "start", lambda thread: (started.append(thread.name), start(thread)))
    monkeypatch.setattr("google.auth.credentials.CredentialsWithRegionalAccessBoundary._is_regional_endpoint", lambda *_: False, raising=False)
    store.put("k", [b"1"])
    read(store, "k")
    store.delete([blob.key for blob in store.list()])
    assert [name for name in started if "process_request" not in name] == []  # those are the token server's


def test_a_key_file_of_another_universe_is_used_there(as_account, tokens, tmp_path):
    store = as_account("owner")
    path = Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"])
    path.write_text(json.dumps({**json.loads(path.read_text()), "universe_domain": "universe.example"}))
    client = store._service._client.get()
    assert client.universe_domain == "universe.example"


INVALID_JWT = "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your iat and exp values in the JWT claim."
TOKEN_REFUSALS = [
    ("invalid_grant", "Invalid JWT Signature.", "yield no access token", "new key"),
    ("invalid_grant", "account not found", "yield no access token", "new key"),
    ("invalid_grant", INVALID_JWT, "clock is wrong", "NTP"),
]


@pytest.mark.parametrize(("error", "description", "message", "hint"), TOKEN_REFUSALS)
def test_a_key_that_yields_no_token_is_bad_configuration(as_account, tokens, error, description, message, hint):
    with FaultProxy(tokens.port) as proxy:
        proxy.add(Rule(Answer(400, json.dumps({"error": error, "error_description": description}).encode(), {"Content-Type": "application/json"})))
        with pytest.raises(StoreMisconfigured, match=message) as caught:
            as_account("owner", port=proxy.port).stat("k")
        assert description.rstrip(".") in caught.value.detail
        assert hint in caught.value.hint
        assert len(proxy.log) == 1


@pytest.mark.parametrize("fault", [Answer(503, b"later"), Answer(500, b'{"error": "internal_failure"}'), LoseAnswer()], ids=["503", "500", "reset"])
def test_a_token_server_in_trouble_is_asked_again_and_not_in_silence(as_account, tokens, fault, capsys):
    with FaultProxy(tokens.port) as proxy:
        proxy.add(Rule(fault, limit=2))
        as_account("owner", port=proxy.port).put("k", [b"1"])
        assert len(proxy.log) == 3
    assert capsys.readouterr().err.count("trying again") == 2


KEY_FILES = {
    "not-json": ("private words", "json"),
    "other-type": ('{"type": "something"}', "type"),
    "no-object": ("[]", "key.json"),
    "no-source": ('{"type": "external_account", "audience": "a", "subject_token_type": "t", "token_url": "http://127.0.0.1:9/"}', "key.json"),
    "no-key": ('{"type": "service_account", "client_email": "a@b"}', "token_uri"),
    "bad-key": ('{"type": "service_account", "client_email": "a@b", "token_uri": "http://127.0.0.1:9/", "private_key": "-----BEGIN secret"}', "key"),
}


@pytest.mark.parametrize("name", KEY_FILES)
def test_a_key_file_that_is_none_is_named(name, tmp_path, monkeypatch):
    content, detail = KEY_FILES[name]
    path = tmp_path / "key.json"
    path.write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    with pytest.raises(StoreMisconfigured, match="no usable Google credentials") as caught:
        open_store(settings_of("bucket")).stat("k")
    assert detail in caught.value.detail
    assert "secret" not in str(caught.value)
    assert "private words" not in str(caught.value)
    assert "GOOGLE_APPLICATION_CREDENTIALS" in caught.value.hint


def test_gclouds_own_file_is_used_without_running_gcloud(bucket, tmp_path, monkeypatch, proxy):
    log_in = {"type": "authorized_user", "client_id": "id", "client_secret": "c-secret-c", "refresh_token": "r-secret-r"}
    (tmp_path / "application_default_credentials.json").write_text(json.dumps(log_in))
    (tmp_path / "gcloud").write_text("#!/bin/sh\ntouch $0.ran\n")
    (tmp_path / "gcloud").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("API_ENDPOINT_OVERRIDE", gcs_server().url)
    monkeypatch.setattr("google.oauth2.credentials._GOOGLE_OAUTH2_TOKEN_ENDPOINT", proxy.url + "/token")
    proxy.add(Rule(Answer(200, b'{"access_token": "a-secret-a", "expires_in": 3600}', {"Content-Type": "application/json"}), path="/token"))
    open_store(settings_of(bucket)).put("k", [b"1"])
    assert not (tmp_path / "gcloud.ran").exists()
    assert log.masked("a-secret-a c-secret-c r-secret-r") == "******** ******** ********"


def test_a_federated_identity_is_exchanged_for_a_token(bucket, tmp_path, monkeypatch, proxy):
    (tmp_path / "subject").write_text("subject-token")
    config = {
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/provider",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": proxy.url + "/sts",
        "credential_source": {"file": str(tmp_path / "subject")},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "config.json"))
    monkeypatch.setenv("API_ENDPOINT_OVERRIDE", gcs_server().url)
    answer = {"access_token": "owner", "issued_token_type": "urn:ietf:params:oauth:token-type:access_token", "token_type": "Bearer", "expires_in": 3600}
    proxy.add(Rule(Answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}), path="/sts"))
    open_store(settings_of(bucket)).put("k", [b"1"])
    assert [record.path for record in proxy.log] == ["/sts"]


ON_A_MACHINE = """
import sys
from wal_e.blobstore.registry import open_store
from wal_e.errors import StoreError
from wal_e.settings import Settings
store = open_store(Settings({"WALE_GS_PREFIX": sys.argv[1], "WALE_RETRIES": "3"}))
try:
    store.put("k", [b"1"])
    print("stored", b"".join(store.get("k")))
except StoreError as error:
    print(type(error).__name__, error, error.hint)
"""


def on_a_machine(bucket, **environ):
    """Run in a process of its own, for Google's library reads where its metadata server is when it is imported."""
    environ = {**os.environ, "API_ENDPOINT_OVERRIDE": gcs_server().url, "CLOUDSDK_CONFIG": "/nowhere", "PYTHONPATH": str(Path(__file__).parents[2]), **environ}
    child = subprocess.run([sys.executable, "-W", "error", "-c", ON_A_MACHINE, f"gs://{bucket}/p"], env=environ, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in child.stderr
    return child


def test_a_machine_at_google_needs_no_key_file(bucket, tokens):
    child = on_a_machine(bucket, **tokens.environ)
    assert child.stdout == "stored b'1'\n"
    assert child.stderr == ""


def test_a_metadata_server_in_trouble_is_asked_again(bucket, tokens):
    with FaultProxy(tokens.port) as proxy:
        proxy.add(Rule(LoseAnswer(), nth=1), Rule(Answer(503), path="recursive", nth=1))
        child = on_a_machine(bucket, GCE_METADATA_HOST=f"127.0.0.1:{proxy.port}", GCE_METADATA_IP=f"127.0.0.1:{proxy.port}")
        assert [record.path for record in proxy.log if "universe" in record.path] == []
    assert child.stdout == "stored b'1'\n"
    assert child.stderr.count("trying again") == 2


def test_without_any_credentials_it_is_said_where_they_were_looked_for(bucket, proxy):
    with proxy.refusing():
        child = on_a_machine(bucket, GCE_METADATA_IP=f"127.0.0.1:{proxy.port}")
    assert child.stdout.startswith("StoreMisconfigured")
    assert "gcloud's application default credentials" in child.stdout
    assert child.stderr == ""


# Under gevent

PATCHED = """
from gevent import monkey
monkey.patch_all(os=False, signal=False)
import sys
import gevent
from wal_e.blobstore.registry import open_store
from wal_e.settings import Settings
store = open_store(Settings({"WALE_GS_PREFIX": sys.argv[1]}), lanes=4)
lanes = [gevent.spawn(store.put, f"k{lane}", iter([bytes([lane]) * 1048576] * 20)) for lane in range(4)]
gevent.joinall(lanes, raise_error=True)
lanes = [gevent.spawn(lambda lane=lane: b"".join(store.get(f"k{lane}")) == bytes([lane]) * 20971520) for lane in range(4)]
gevent.joinall(lanes, raise_error=True)
print([lane.value for lane in lanes])
"""


def test_lanes_overlap_under_gevent(bucket, proxy):
    proxy.add(Rule(Delay(0.05)))
    environ = {**os.environ, "STORAGE_EMULATOR_HOST": proxy.url, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.run([sys.executable, "-c", PATCHED, f"gs://{bucket}/p"], env=environ, capture_output=True, text=True, timeout=120)
    assert (child.stdout, child.stderr) == ("[True, True, True, True]\n", "")
    assert proxy.overlap >= 4
