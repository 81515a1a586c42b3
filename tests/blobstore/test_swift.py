"""What is special to Swift; what all stores do is in test_contract.py."""

import json
import logging
import re
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from fake_keystone import keystone
from fault_proxy import FaultProxy
from fault_rules import Action, Answer, Corrupt, Cut, LoseAnswer, Rule, Stall, too_many_requests
from fix_swift import owner, swift_container, swift_server, swift_settings
from requests.exceptions import SSLError
from swiftclient import client

from wal_e.blobstore.objects import ObjectStore
from wal_e.blobstore.registry import open_store
from wal_e.blobstore.service import CREATE, PUT, Part, Whole
from wal_e.blobstore.swift import claims
from wal_e.blobstore.swift import container as container_module
from wal_e.blobstore.swift.errors import Doing, trouble
from wal_e.blobstore.swift.names import Names, writer_id
from wal_e.blobstore.swift.service import SwiftService
from wal_e.blobstore.url import parse_store_url
from wal_e.errors import BlobExists, BlobNotFound, DamageError, StoreError, StoreForbidden, StoreMisconfigured, StoreUnavailable
from wal_e.log import masked
from wal_e.retry import Effort, Policy

MIB = 1 << 20


@pytest.fixture
def container():
    return swift_container()


@pytest.fixture
def proxy():
    with FaultProxy(swift_server().port) as proxy:
        yield proxy


def service_at(container, proxy=None, path="/pg", **changes):
    prefix = f"swift://{container}{path}"
    at_proxy = {"SWIFT_AUTHURL": f"{proxy.url}/auth/v1.0"} if proxy else {}
    return SwiftService(parse_store_url(prefix), swift_settings(prefix, **{**at_proxy, **changes}), 4)


def store_at(container, proxy=None, attempts=6, **changes):
    """A store that hardly waits before it tries again."""
    policy = Policy(attempts, 30, first_delay_s=0.01, max_delay_s=0.02)
    return ObjectStore(service_at(container, proxy, **changes), Effort(policy, policy), 4, sleep=lambda _: None)


def objects(container):
    return [entry["name"] for entry in client.get_container(*owner(), container, full_listing=True)[1]]


def read(store, key, **part):
    return b"".join(store.get(key, **part))


def every_verb(service):
    """Each request of a service on one key, by its name."""
    return {
        "write": lambda: service.write("dir/key", b"1", 0, PUT),
        "create": lambda: service.write("dir/key", b"1", 0, CREATE),
        "send": lambda: service.begin("dir/key", PUT).send(Part(0, 0, b"1", True)),
        "read": lambda: service.open("dir/key", 0, None, None),
        "stat": lambda: service.stat("dir/key"),
        "list": lambda: service.page("", None),
        "delete": lambda: raising(service.delete(["dir/key"])),
        "leftovers": lambda: list(service.leftovers()),
    }


def raising(errors):
    for error in errors.values():
        raise error


class Meanwhile(Action):
    """Do something else before a request is forwarded."""

    def __init__(self, act):
        self.act = act

    def before(self, exchange):
        self.act()
        return False


# Who we are


def test_constructing_a_store_makes_no_request(proxy, container):
    store_at(container, proxy)
    assert proxy.connections == 0


def test_all_requests_share_one_token(proxy, container):
    store = store_at(container, proxy)
    store.put("big", (b"x" * MIB for _ in range(20)))
    assert read(store, "big") == b"x" * 20 * MIB
    assert [record.path for record in proxy.log].count("/auth/v1.0") == 1


@pytest.mark.parametrize(
    ("version", "left_out", "named"),
    [
        ("1", "SWIFT_AUTHURL", "SWIFT_AUTHURL"),
        ("1", "SWIFT_USER", "SWIFT_USER"),
        ("2", "SWIFT_PASSWORD", "SWIFT_PASSWORD, SWIFT_TENANT"),
        ("3", "SWIFT_USER", "SWIFT_USER, SWIFT_PROJECT_NAME (or SWIFT_TENANT)"),
    ],
)
def test_missing_credentials_are_named(container, version, left_out, named):
    with pytest.raises(StoreMisconfigured, match="not complete") as caught:
        service_at(container, **{"SWIFT_USER": "user", "SWIFT_AUTH_VERSION": version, left_out: None})
    assert f"Version {version} of the authentication needs {named}." in caught.value.detail


@pytest.mark.parametrize("verb", ["write", "create", "send", "read", "stat", "list", "delete", "leftovers"])
def test_a_wrong_password_is_a_misconfiguration_that_does_not_show_it(container, verb):
    service = service_at(container, SWIFT_PASSWORD="not-the-password")
    with pytest.raises(StoreMisconfigured, match="was not accepted by http") as caught:
        every_verb(service)[verb]()
    assert not caught.value.transient
    assert "401" in caught.value.detail
    assert "SWIFT_PASSWORD" in caught.value.hint
    assert "not-the-password" not in f"{caught.value} {caught.value.hint}"
    assert masked("it is not-the-password") == "it is ********"


def test_a_wrong_address_of_the_authentication_is_a_misconfiguration(container):
    endpoint = swift_server()
    for url in (
        f"http://127.0.0.1:{endpoint.port}/healthcheck",
        f"http://127.0.0.1:{endpoint.port}/info",
        "not-an-url",
        "http://",
        "ftp://x/auth",
        "http://[x",
    ):
        with pytest.raises(StoreMisconfigured) as caught:
            service_at(container, SWIFT_AUTHURL=url).stat("key")
        assert "SWIFT_AUTHURL" in caught.value.hint


def test_an_expired_token_is_renewed_once_for_all(proxy, container):
    store = store_at(container, proxy)
    store.put("key", [b"content"])
    proxy.clear()
    proxy.add(Rule(Answer(401), path="key", limit=1))
    assert store.stat("key").size == 7
    assert [record.status for record in proxy.log] == [401, 200, 200]
    assert proxy.log[1].path == "/auth/v1.0"


def test_a_body_is_sent_again_whole_after_the_token_was_renewed(proxy, container):
    store = store_at(container, proxy)
    proxy.add(Rule(Answer(401), method="PUT", path="/key$", limit=1))
    store.put("key", [b"content"])
    assert read(store, "key") == b"content"


def test_a_token_that_is_refused_when_new_is_a_misconfiguration(proxy, container):
    service = service_at(container, proxy)
    service.write("key", b"1", 0, PUT)
    proxy.add(Rule(Answer(401), path="/v1/"))
    for use in every_verb(service).values():
        with pytest.raises(StoreMisconfigured, match="does not accept the token"):
            use()
    token = service._container._sign_in.account().token
    assert masked(token) == "********"


def test_swiftclient_logs_nothing_and_no_secret(container, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    store = store_at(container)
    store.put("key", [b"content"])
    with pytest.raises(BlobNotFound):
        store.stat("absent")
    logged = caplog.text + "".join(capfd.readouterr())
    assert swift_server().key not in logged
    assert store._service._container._sign_in.account().token not in logged


@pytest.fixture
def fake_keystone():
    url, token = owner()
    with keystone(url, token, "the-password") as fake:
        yield fake


def keystone_settings(fake, version, **more):
    return {"SWIFT_AUTHURL": fake.url, "SWIFT_AUTH_VERSION": version, "SWIFT_USER": "user", "SWIFT_PASSWORD": "the-password", "SWIFT_REGION": "west", **more}


@pytest.mark.parametrize("endpoint_type", ["publicURL", "internalURL"])
@pytest.mark.parametrize("suffix", ["", "/", "/VERSION", "/VERSION/"])
@pytest.mark.parametrize(("version", "in_path"), [("2", "v2.0"), ("2.0", "v2.0"), ("3", "v3")])
def test_keystone_opens_the_account(fake_keystone, container, version, in_path, suffix, endpoint_type):
    url = fake_keystone.url + suffix.replace("VERSION", in_path)
    changes = keystone_settings(fake_keystone, version, SWIFT_TENANT="project", SWIFT_ENDPOINT_TYPE=endpoint_type, SWIFT_AUTHURL=url)
    store = store_at(container, **changes)
    store.put("key", [b"content"])
    assert read(store, "key") == b"content"
    assert len(fake_keystone.asked) == 1


def test_keystone_2_is_told_user_password_and_tenant(fake_keystone, container):
    for more, told in [
        ({"SWIFT_TENANT": "project"}, {"tenantName": "project"}),
        ({"SWIFT_USER": "project:user"}, {"tenantName": "project"}),
        ({"SWIFT_TENANT_ID": "t1"}, {"tenantId": "t1"}),
    ]:
        service_at(container, **keystone_settings(fake_keystone, "2", **more)).page("", None)
        given = {"username": "user", "password": "the-password"}
        assert fake_keystone.asked.pop() == {"auth": {"passwordCredentials": given, **told}}


def test_keystone_3_is_told_user_domain_and_project(fake_keystone, container):
    default = {"id": "default"}
    for more, user, scope in [
        ({"SWIFT_TENANT": "p"}, {"name": "user", "domain": default}, {"project": {"name": "p", "domain": default}}),
        (
            {"SWIFT_PROJECT_NAME": "p", "SWIFT_USER_DOMAIN_NAME": "ud", "SWIFT_PROJECT_DOMAIN_NAME": "pd"},
            {"name": "user", "domain": {"name": "ud"}},
            {"project": {"name": "p", "domain": {"name": "pd"}}},
        ),
        ({"SWIFT_PROJECT_ID": "p1", "SWIFT_USER_ID": "u1", "SWIFT_USER": None}, {"id": "u1"}, {"project": {"id": "p1"}}),
        ({"SWIFT_DOMAIN_NAME": "d", "SWIFT_USER_DOMAIN_ID": "ud1"}, {"name": "user", "domain": {"id": "ud1"}}, {"domain": {"name": "d"}}),
    ]:
        service_at(container, **keystone_settings(fake_keystone, "3", **more)).page("", None)
        asked = fake_keystone.asked.pop()["auth"]
        assert asked["identity"]["password"]["user"] == {**user, "password": "the-password"}
        assert asked["scope"] == scope


@pytest.mark.parametrize("version", ["2", "3"])
def test_keystone_says_what_is_wrong(fake_keystone, container, version):
    def error(**changes):
        with pytest.raises(StoreError) as caught:
            service_at(container, **keystone_settings(fake_keystone, version, SWIFT_TENANT="project", **changes)).stat("key")
        assert "the-password" not in f"{caught.value} {caught.value.hint}"
        return caught.value

    wrong_password = error(SWIFT_PASSWORD="not-the-password")
    assert isinstance(wrong_password, StoreMisconfigured)
    assert "was not accepted" in wrong_password.message
    wrong_region = error(SWIFT_REGION="north")
    assert isinstance(wrong_region, StoreMisconfigured)
    assert "in region east" in wrong_region.detail
    assert "in region west" in wrong_region.detail
    assert "SWIFT_REGION" in wrong_region.hint
    wrong_place = error(SWIFT_AUTHURL=f"{fake_keystone.url}/elsewhere")
    assert isinstance(wrong_place, StoreMisconfigured)
    assert "no authentication service" in wrong_place.message
    nobody = error(SWIFT_AUTHURL="http://127.0.0.1:9/")
    assert isinstance(nobody, StoreUnavailable)
    fake_keystone.status = 503
    busy = error()
    assert isinstance(busy, StoreUnavailable)
    assert busy.wait_s == 3


# What is refused


@pytest.mark.parametrize("verb", ["write", "create", "send", "read", "stat", "list", "delete", "leftovers"])
def test_a_missing_container_is_a_misconfiguration_never_an_absent_key(verb):
    with pytest.raises(StoreMisconfigured, match="no Swift container no-such-place") as caught:
        every_verb(service_at("no-such-place"))[verb]()
    assert "transaction tx" in caught.value.detail
    assert "swift post no-such-place" in caught.value.hint


def test_a_key_is_absent_only_where_the_container_is_seen(proxy, container):
    service = service_at(container, proxy)
    assert service._slash.root() == "pg/"
    service._container._seen = False
    proxy.clear()
    for _ in range(2):
        with pytest.raises(BlobNotFound, match=f"swift://{container}/pg/absent does not exist"):
            service.stat("absent")
    assert [record.method for record in proxy.log] == ["HEAD"] * 3  # the container is looked for once


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        ("write", "read swift://CONTAINER/pg/dir/key"),  # it looks what it is about to replace
        ("create", "write swift://CONTAINER/pg/dir/key"),
        ("send", "write swift://CONTAINER/pg/dir/key"),
        ("read", "read swift://CONTAINER/pg/dir/key"),
        ("stat", "read swift://CONTAINER/pg/dir/key"),
        ("list", "list swift://CONTAINER/pg/"),
        ("delete", "read swift://CONTAINER/pg/dir/key"),
        ("leftovers", "list swift://CONTAINER/pg"),
    ],
)
def test_who_may_do_nothing_is_told_what(container, verb, message):
    endpoint = swift_server()
    service = service_at(container, SWIFT_USER=endpoint.reader, SWIFT_PASSWORD=endpoint.reader_key)
    service._slash._root = "pg/"
    with pytest.raises(StoreForbidden) as caught:
        every_verb(service)[verb]()
    assert caught.value.message == f"Swift does not allow to {message.replace('CONTAINER', container)}"
    assert "403" in caught.value.detail
    assert not caught.value.transient


def test_who_may_only_read_reads_large_blobs_too_and_writes_and_deletes_nothing():
    endpoint = swift_server()
    container = swift_container(**{"X-Container-Read": f"{endpoint.reader},.rlistings"})
    store_at(container).put("dir/key", (b"x" * MIB for _ in range(20)))
    reader = store_at(container, SWIFT_USER=endpoint.reader, SWIFT_PASSWORD=endpoint.reader_key)
    assert len(read(reader, "dir/key")) == 20 * MIB
    assert [blob.key for blob in reader.list()] == ["dir/key"]
    with pytest.raises(BlobNotFound):
        reader.stat("absent")
    for verb, use in [
        ("write", lambda: reader.put("dir/key", [b"1"])),
        ("write", lambda: reader.create("new", [b"1"])),
        ("delete", lambda: reader.delete(["dir/key"])),
    ]:
        with pytest.raises(StoreForbidden) as caught:
            use()
        assert f"{verb} swift://{container}/pg/" in str(caught.value)
    assert len(read(reader, "dir/key")) == 20 * MIB


def test_one_key_that_cannot_be_deleted_is_named(proxy, container):
    store = store_at(container, proxy)
    for number in range(20):
        store.put(f"key{number}", [b"1"])
    proxy.add(Rule(Answer(403), method="DELETE", path="key7$"))
    with pytest.raises(StoreForbidden, match="could not delete all") as caught:
        store.delete(f"key{number}" for number in range(20))
    assert "1 left: key7." in caught.value.detail
    assert objects(container) == ["pg/key7"]


# What passes


@pytest.mark.parametrize(
    ("status", "wait_s"), [(408, None), (409, None), (422, None), (429, 7), (498, 7), (499, None), (500, None), (502, None), (503, 7), (507, None)]
)
@pytest.mark.parametrize("path", ["/auth/", "/v1/"])
def test_an_answer_that_may_pass_is_unavailable(proxy, container, path, status, wait_s):
    service = service_at(container, proxy)
    proxy.add(Rule(Answer(status, b"<html>busy</html>", {"Retry-After": "7", "X-Trans-Id": "tx0815", "Content-Type": "text/html"}), path=path))
    with pytest.raises(StoreUnavailable) as caught:
        service.page("", None)
    assert caught.value.transient
    assert caught.value.wait_s == wait_s
    assert re.fullmatch(rf"The service says: {status} .*, transaction tx0815\.", caught.value.detail)


def test_a_busy_service_is_tried_again(proxy, container):
    store = store_at(container, proxy, attempts=50)
    proxy.add(Rule(Answer(503), probability=0.2), Rule(too_many_requests(retry_after_s=1), probability=0.1, seed=1))
    store.create("small", [b"1"])
    store.put("large", (b"x" * MIB for _ in range(20)))
    assert read(store, "small") == b"1"
    assert len(read(store, "large")) == 20 * MIB
    store.delete(["small", "large"])
    proxy.clear()
    assert objects(container) == []


def test_no_route_no_name_and_no_answer_are_unavailable(proxy, container):
    for url in ("http://127.0.0.1:9/auth/v1.0", "http://no-such-host.invalid/auth/v1.0"):
        with pytest.raises(StoreUnavailable, match="the connection failed when asked to sign in at"):
            service_at(container, SWIFT_AUTHURL=url).stat("key")
    service = service_at(container, proxy, WALE_READ_TIMEOUT="0.3")
    service.page("", None)
    proxy.add(Rule(Stall()))
    with pytest.raises(StoreUnavailable, match=f"no answer in time when asked to read swift://{container}/pg/key"):
        service.stat("key")


def test_a_certificate_that_is_not_trusted_is_a_misconfiguration():
    error = SSLError("HTTPSConnectionPool(...): [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate")
    explained = trouble(error, Doing("read", "swift://c/key"), 0)
    assert isinstance(explained, StoreMisconfigured)
    assert "REQUESTS_CA_BUNDLE" in explained.hint
    assert isinstance(trouble(SSLError("EOF occurred in violation of protocol"), Doing("read", "swift://c/key"), 0), StoreUnavailable)


def test_a_file_of_certificates_that_is_not_there_is_a_misconfiguration(container, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/file.pem")
    for version in ("1", "3"):
        with pytest.raises(StoreMisconfigured) as caught:
            service_at(container, SWIFT_AUTHURL="https://127.0.0.1:9/v3", SWIFT_AUTH_VERSION=version, SWIFT_TENANT="project").stat("key")
        assert "/no/such/file.pem" in caught.value.detail
        assert "REQUESTS_CA_BUNDLE" in caught.value.hint


def test_a_connection_that_had_gone_stale_is_no_reason_to_wait(proxy, container):
    service = service_at(container, proxy)
    service.page("", None)
    proxy.add(Rule(LoseAnswer(how="fin"), limit=1))
    with pytest.raises(StoreUnavailable) as caught:
        service.page("", None)
    assert caught.value.wait_s == 0
    fresh = service_at(container, proxy)
    proxy.add(Rule(LoseAnswer(how="fin"), path="/v1/", limit=1))
    with pytest.raises(StoreUnavailable) as caught:
        fresh.page("", None)
    assert caught.value.wait_s is None


# Integrity


@pytest.mark.parametrize("size", [5, 20 * MIB])
@pytest.mark.parametrize("verb", ["put", "create"])
def test_a_body_that_changes_on_its_way_up_is_refused_and_sent_again(proxy, container, verb, size):
    store = store_at(container, proxy)
    changed = Rule(Corrupt(at=3, of="request"), method="PUT", path="(/dir/key|0000)$", limit=1)
    proxy.add(changed)
    content = bytes(range(256)) * (size // 256 + 1)
    getattr(store, verb)("dir/key", [content])
    assert changed.applied == 1
    assert 422 in [record.status for record in proxy.log]
    proxy.clear()
    assert read(store, "dir/key") == content


def test_a_small_blob_that_changes_on_its_way_down_is_fetched_again(proxy, container):
    store = store_at(container, proxy)
    store.put("key", [b"content"])
    proxy.add(Rule(Corrupt(at=3), method="GET", path="/key$", limit=1))
    assert read(store, "key") == b"content"


@pytest.mark.parametrize("size", [3 * MIB, 20 * MIB])
def test_a_large_blob_that_arrives_changed_is_damage(proxy, container, size):
    store = store_at(container, proxy)
    store.put("key", [b"x" * MIB] * (size // MIB))
    assert len(read(store, "key")) == size
    proxy.add(Rule(Corrupt(at=2 * MIB), method="GET", path="/key$", limit=1))
    with pytest.raises(DamageError, match="key did not arrive as it was stored"):
        read(store, "key")


@pytest.mark.parametrize("how", ["rst", "fin"])
@pytest.mark.parametrize("size", [3 * MIB, 20 * MIB])
def test_a_download_that_is_cut_goes_on_at_the_byte_where_it_stopped(proxy, container, size, how):
    store = store_at(container, proxy)
    content = bytes(range(256)) * (size // 256)
    store.put("key", [content])
    proxy.clear()
    proxy.add(Rule(Cut(MIB, how=how), method="GET", path="/key$", limit=3))
    assert read(store, "key", start=7) == content[7:]
    assert {record.status for record in proxy.log} == {206}
    assert len(proxy.log) in (3, 4)  # of a connection that is reset, less may arrive than was sent


@pytest.mark.parametrize("size", [3 * MIB, 20 * MIB])
def test_two_versions_never_mix_when_a_cut_download_goes_on(proxy, container, size):
    store = store_at(container, proxy)
    store.put("key", [b"a" * size])
    proxy.add(Rule(Cut(MIB), method="GET", path="/key$", limit=1))
    chunks = store.get("key")
    first = next(chunks)
    store.put("key", [b"b" * size])
    with pytest.raises(StoreError, match="was replaced while it was read"):
        b"".join(chunks)
    assert set(first) == {ord("a")}


def test_a_download_that_is_not_read_to_its_end_gives_up_its_connection(container):
    store = store_at(container)
    store.put("key", [b"x" * 3 * MIB])
    chunks = store.get("key")
    next(chunks)
    idle = list(store._service._container._idle)
    chunks.close()
    assert store._service._container._idle == idle
    assert store.stat("key").size == 3 * MIB


def test_the_first_bytes_are_there_before_the_last_ones_come(proxy, container):
    store = store_at(container, proxy)
    store.put("key", [b"x" * 3 * MIB])
    stall = Stall(after=100)
    proxy.add(Rule(stall, method="GET", path="/key$"))
    chunks = store.get("key")
    assert next(chunks) == b"x" * 100
    chunks.close()


# Writing


@pytest.mark.parametrize("size", [5, 20 * MIB])
@pytest.mark.parametrize("verb", ["put", "create"])
def test_a_write_whose_answer_is_lost_ends_well(proxy, container, verb, size):
    store = store_at(container, proxy)
    lost = Rule(LoseAnswer(), method="PUT", path=r"/dir/key(\?multipart-manifest=put)?$", limit=1)
    proxy.add(lost)
    assert getattr(store, verb)("dir/key", [b"x" * size]) == size
    assert lost.applied == 1
    assert read(store, "dir/key") == b"x" * size
    assert list(store.leftovers()) == []


def test_an_upload_knows_its_own_manifest_from_that_of_another(proxy, container):
    service = service_at(container, proxy)
    uploads = [service.begin("dir/key", CREATE) for _ in range(2)]
    for upload in uploads:
        upload.send(Part(0, 0, b"content", True))
    whole = Whole(7, 1, 0xBF5E0C4B)
    proxy.add(Rule(LoseAnswer(), path="multipart-manifest", limit=1))
    with pytest.raises(StoreUnavailable):
        uploads[0].complete(whole)
    uploads[0].complete(whole)
    with pytest.raises(BlobExists):
        uploads[1].complete(whole)
    uploads[1].abort()
    assert len(objects(container)) == 2


@pytest.mark.parametrize("error", [RuntimeError("the codec died"), KeyboardInterrupt()])
@pytest.mark.parametrize("verb", ["put", "create"])
def test_an_upload_that_is_given_up_leaves_nothing(container, verb, error):
    def chunks():
        for _ in range(30):
            yield b"x" * MIB
        raise error

    with pytest.raises(type(error)):
        getattr(store_at(container), verb)("dir/key", chunks())
    assert objects(container) == []


def test_an_upload_that_cannot_be_sent_leaves_nothing(proxy, container):
    store = store_at(container, proxy)
    proxy.add(Rule(Answer(413), method="PUT", path="00000002$"))
    with pytest.raises(StoreError, match="Swift does not take") as caught:
        store.put("dir/key", [b"x" * MIB] * 30)
    assert "quota" in caught.value.detail
    assert objects(container) == []


def test_segments_stay_when_it_is_not_known_whether_the_manifest_came(proxy, container, capfd):
    store = store_at(container, proxy)
    proxy.add(Rule(Answer(503), path="multipart-manifest"))
    with pytest.raises(StoreUnavailable):
        store.put("dir/key", [b"x" * MIB] * 20)
    assert "wal-e delete garbage" in capfd.readouterr().err
    (leftover,) = store.leftovers()
    store.discard(leftover)
    assert objects(container) == []


def test_a_manifest_that_came_after_all_keeps_its_segments(proxy, container):
    store = store_at(container, proxy)
    proxy.add(Rule(LoseAnswer(), path="multipart-manifest"))
    with pytest.raises(StoreUnavailable):
        store.put("dir/key", [b"x" * MIB] * 20)
    assert read(store, "dir/key") == b"x" * MIB * 20
    assert list(store.leftovers()) == []


def test_a_killed_upload_is_a_leftover_until_it_is_discarded(container):
    store = store_at(container)
    store.put("dir/key", [b"y" * MIB] * 20)
    before = objects(container)
    upload = store._service.begin("dir/key", PUT)
    for number in range(3):
        upload.send(Part(number, 10 * number, b"x" * 10, number == 2))
    store._service.begin("dir/key/below", PUT).send(Part(0, 0, b"x", True))
    (leftover, below) = store.leftovers()
    assert leftover.description == f"segments of swift://{container}/pg/dir/key, which was not stored whole"
    assert leftover.size == 30
    assert abs(leftover.started - datetime.now(UTC)) < timedelta(minutes=1)
    assert [blob.key for blob in store.list()] == ["dir/key"]
    store.discard(leftover)
    store.discard(leftover)
    assert list(store.leftovers()) == [below]
    store.discard(below)
    assert objects(container) == before
    assert read(store, "dir/key") == b"y" * MIB * 20


def test_an_upload_that_ended_after_it_was_seen_is_not_discarded(container):
    store = store_at(container)
    upload = store._service.begin("dir/key", PUT)
    upload.send(Part(0, 0, b"content", True))
    (leftover,) = store.leftovers()
    upload.complete(Whole(7, 1, 0xBF5E0C4B))
    store.discard(leftover)
    assert store._service.stat("dir/key").size == 7
    assert b"".join(store._service.open("dir/key", 0, None, None).chunks) == b"content"


def test_an_upload_has_at_most_a_thousand_segments(container):
    with pytest.raises(StoreError, match="too large for Swift"):
        store_at(container)._service.begin("dir/key", PUT).send(Part(1000, 0, b"x", False))


@pytest.mark.parametrize("size", [0, 1, 20 * MIB])
def test_a_large_blob_that_is_replaced_or_deleted_takes_its_segments_along(container, size):
    store = store_at(container)
    store.put("dir/key", [b"x" * MIB] * 20)
    assert len(objects(container)) > 2
    store.put("dir/key", [b"y" * size])
    assert read(store, "dir/key") == b"y" * size
    assert list(store.leftovers()) == []
    assert ("pg/dir/key" in objects(container)) and (len(objects(container)) == 1) == (size < 20 * MIB)
    store.delete(["dir/key"])
    assert objects(container) == []


def test_a_large_blob_is_invisible_before_its_segments_go(proxy, container, capfd):
    store = store_at(container, proxy)
    store.put("dir/key", [b"x" * MIB] * 20)
    proxy.add(Rule(Answer(403), method="DELETE", path=".segments"))
    store.delete(["dir/key"])
    assert list(store.list()) == []
    assert "segments of what was" in capfd.readouterr().err
    proxy.clear()
    for leftover in store.leftovers():
        store.discard(leftover)
    assert objects(container) == []


def test_the_checksum_of_the_whole_is_kept_with_every_blob(container):
    store = store_at(container)
    store.put("dir/a.json", [b"123456789"])
    store.create("dir/b.txt", [b"x" * MIB] * 20)
    service = store._service
    opened = service.open("dir/a.json", 2, 3, None)
    assert b"".join(opened.chunks) == b"345"
    assert (opened.size, opened.crc32c) == (9, 0xE3069283)  # the check value of CRC32C
    ranged = service.open("dir/b.txt", 19 * MIB, None, None)
    assert ranged.size == 20 * MIB
    assert ranged.crc32c is not None
    ranged.chunks.close()
    heads = [client.head_object(*owner(), container, f"pg/dir/{name}") for name in ("a.json", "b.txt")]
    assert [head["content-type"] for head in heads] == ["application/json", "text/plain"]


def test_memory_is_bounded_however_large_the_blob(container):
    store = open_store(swift_settings(f"swift://{container}/pg"))
    tracemalloc.start()
    try:
        store.put("large", (bytes(MIB) for _ in range(160)))
        up = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        assert sum(map(len, store.get("large"))) == 160 * MIB
        down = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert up < 80 * MIB
    assert down < 8 * MIB


# Creating


def test_creators_leave_no_announcement(container):
    store = store_at(container)
    store.create("dir/key", [b"1"])
    with pytest.raises(BlobExists):
        store.create("dir/key", [b"2"])
    assert objects(container) == ["pg/dir/key"]


def test_what_another_writer_stored_at_the_same_moment_is_seen_by_reading_back(proxy, container):
    store = store_at(container, proxy)
    theirs = Rule(Meanwhile(lambda: client.put_object(*owner(), container, "pg/dir/key", b"theirs")), method="HEAD", path="/dir/key$", limit=1)
    proxy.add(theirs)
    with pytest.raises(BlobExists) as caught:
        store.create("dir/key", [b"mine"])
    assert theirs.applied == 1
    assert "at the same moment" in caught.value.detail
    assert read(store, "dir/key") == b"theirs"


@pytest.mark.parametrize("name", ["00000000T000000Z-first", "99999999T000000Z-last"])
def test_a_creator_waits_for_another_one_and_loses_to_it(proxy, container, name):
    claim = Names("pg/").claims("dir/key") + name
    client.put_object(*owner(), container, claim, b"")
    store = store_at(container, proxy)
    proxy.add(Rule(Meanwhile(lambda: client.put_object(*owner(), container, "pg/dir/key", b"theirs")), method="HEAD", path="/dir/key$", nth=2))
    with pytest.raises(BlobExists):
        store.create("dir/key", [b"mine"])
    assert read(store, "dir/key") == b"theirs"
    assert objects(container) == [claim, "pg/dir/key"]


def test_a_creator_goes_on_when_another_one_has_gone(proxy, container):
    claim = Names("pg/").claims("dir/key") + "00000000T000000Z-first"
    client.put_object(*owner(), container, claim, b"")
    store = store_at(container, proxy)
    proxy.add(Rule(Meanwhile(lambda: client.delete_object(*owner(), container, claim)), method="HEAD", path="/dir/key$", nth=2))
    store.create("dir/key", [b"mine"])
    assert objects(container) == ["pg/dir/key"]


def test_a_killed_creator_is_waited_for_and_removed(container, monkeypatch, capfd):
    monkeypatch.setattr(claims, "PATIENCE_S", 0.3)
    for name in ("00000000T000000Z-first", "99999999T000000Z-last"):
        key = f"dir/{name}"
        client.put_object(*owner(), container, Names("pg/").claims(key) + name, b"")
        store = store_at(container)
        (leftover,) = store.leftovers()
        assert leftover.description == f"the announcement that swift://{container}/pg/{key} is being created"
        store.create(key, [b"mine"])
        assert "did not end within" in capfd.readouterr().err
        assert list(store.leftovers()) == []


def test_a_creator_does_not_wait_for_itself(proxy, container, capfd):
    store = store_at(container, proxy)
    kept = Rule(Answer(503), method="DELETE", path=".claims")
    proxy.add(kept, Rule(Answer(503), method="PUT", path="/dir/key$", limit=1))
    store.create("dir/key", [b"mine"])
    assert kept.applied >= 2
    assert read(store, "dir/key") == b"mine"
    err = capfd.readouterr().err
    assert "could not be removed" in err
    assert "another process" not in err
    assert len(list(store.leftovers())) == 2


def test_of_two_creators_under_way_the_second_waits_and_loses(proxy, container):
    first, second = Stall(after=1, of="request"), Stall(after=1, of="request")
    proxy.add(Rule(first, method="PUT", path="/dir/key$", nth=1), Rule(second, method="PUT", path="/dir/key$", nth=2))

    def create(content):
        try:
            store_at(container, proxy).create("dir/key", [content])
        except BlobExists:
            return False
        return True

    def looks():
        return [record for record in proxy.log if record.method == "HEAD" and record.path.endswith("/dir/key")]

    with ThreadPoolExecutor(2) as pool:
        mine = pool.submit(create, b"the first")
        assert first.reached.wait(20)  # Swift has seen by now that there is no such object
        theirs = pool.submit(create, b"the second")
        await_that(lambda: looks() or second.reached.is_set())
        first.released.set()
        assert mine.result(20)
        second.released.set()
        assert not theirs.result(20)
    assert read(store_at(container), "dir/key") == b"the first"


def await_that(answers):
    deadline = time.monotonic() + 20
    while not answers():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_announcements_for_other_keys_do_not_matter(container, capfd):
    others = [Names("pg/").claims(other) + writer_id() for other in ("dir", "dir/key/below", "dir/key2")]
    for other in others:
        client.put_object(*owner(), container, other, b"")
    store_at(container).create("dir/key", [b"mine"])
    assert objects(container) == [*others, "pg/dir/key"]
    assert capfd.readouterr().err == ""


# Names


def test_a_name_of_a_segment_or_an_announcement_tells_key_and_writer():
    for root in ("", "pg/", "/pg/"):
        names, writer = Names(root), writer_id()
        assert names.upload_of(names.segments("a/b", writer) + "00000007") == ("a/b", writer)
        assert names.claim_of(names.claims("a/b") + writer) == ("a/b", writer)


def test_an_archive_of_wal_e_is_read_and_written_with_its_leading_slash(container):
    client.put_object(*owner(), container, "/pg/wal_005/1.lzo", b"old")
    store = store_at(container)
    assert read(store, "wal_005/1.lzo") == b"old"
    store.put("wal_005/2.lzo", [b"new"])
    assert objects(container) == ["/pg/wal_005/1.lzo", "/pg/wal_005/2.lzo"]
    assert [blob.key for blob in store.list()] == ["wal_005/1.lzo", "wal_005/2.lzo"]


@pytest.mark.parametrize("path", ["", "/pg"])
def test_a_store_may_be_a_whole_container(container, path):
    store = store_at(container, path=path)
    store.put("dir/key", [b"x" * MIB] * 20)
    store.create("other", [b"1"])
    assert [blob.key for blob in store.list()] == ["dir/key", "other"]
    assert store.url_of("other") == f"swift://{container}{path}/other"
    store.delete(["dir/key", "other"])
    assert objects(container) == []


def test_a_listing_of_many_pages_is_whole(container, monkeypatch):
    monkeypatch.setattr(container_module.Container.page, "__defaults__", ("", 3))
    store = store_at(container)
    wanted = [f"key{number:02d}" for number in range(10)]
    for key in wanted:
        store.put(key, [b"1"])
    assert [blob.key for blob in store.list()] == wanted


# Under gevent

UNDER_GEVENT = """
from gevent import monkey
monkey.patch_all(os=False, signal=False)
import json, sys
from gevent.pool import Pool
from wal_e.blobstore.registry import open_store
from wal_e.settings import Settings
store = open_store(Settings(json.loads(sys.argv[1])), lanes=4)
def work(me):
    store.put(f"large/{me}", (b"%d" % me * (1 << 20) for _ in range(20)))
    assert b"".join(store.get(f"large/{me}")) == b"%d" % me * (20 << 20)
    store.create(f"small/{me}", [b"1"])
Pool(4).map(work, range(8))
assert len(list(store.list())) == 16
store.delete([blob.key for blob in store.list()])
assert list(store.list()) == list(store.leftovers()) == []
print("done")
"""


def test_greenlets_share_a_store(proxy, container):
    environ = swift_settings(f"swift://{container}/pg", SWIFT_AUTHURL=f"{proxy.url}/auth/v1.0")._environ
    done = subprocess.run([sys.executable, "-c", UNDER_GEVENT, json.dumps(environ)], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("done\n", "")
    assert proxy.overlap > 3


def test_a_store_for_segments_does_not_import_keystone():
    code = """
import json, sys
from wal_e.blobstore.registry import open_store
from wal_e.settings import Settings
open_store(Settings(json.loads(sys.argv[1])))
print(sorted({"keystoneclient", "keystoneauth1", "oslo_config"} & set(sys.modules)))
"""
    environ = swift_settings("swift://container/pg")._environ
    done = subprocess.run([sys.executable, "-c", code, json.dumps(environ)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
