import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_e.blobstore.url import SCHEMES, StoreUrl, checked_key, parse_store_url, shown
from wal_e.errors import ConfigurationError

words = st.text(alphabet="abz09-._ é%?#+", min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("file://localhost/backups/pg", ("file", "localhost", "/backups/pg")),
        ("file://localhost/backups/pg/", ("file", "localhost", "/backups/pg")),
        ("file:///backups/pg", ("file", "", "/backups/pg")),
        ("FILE://LocalHost/Backups", ("file", "localhost", "/Backups")),
        ("file:///", ("file", "", "/")),
        ("file://localhost/with space/a%20b?c#d", ("file", "localhost", "/with space/a%20b?c#d")),
        ("file://localhost/back@ups", ("file", "localhost", "/back@ups")),
        ("s3://bucket/some/prefix/", ("s3", "bucket", "/some/prefix")),
        ("s3://bucket", ("s3", "bucket", "")),
        ("S3://Bucket/", ("s3", "Bucket", "")),
        ("gs://bucket/p", ("gs", "bucket", "/p")),
        ("wabs://container/p", ("wabs", "container", "/p")),
        ("swift://container/p", ("swift", "container", "/p")),
    ],
)
def test_a_store_url_has_three_parts(url, parts):
    assert parse_store_url(url) == StoreUrl(*parts)


@given(scheme=st.sampled_from(["s3", "gs", "wabs", "swift"]), host=words, path=st.lists(words, max_size=3))
def test_a_url_is_its_parts_joined(scheme, host, path):
    joined = "".join("/" + part for part in path)
    assert parse_store_url(f"{scheme}://{host}{joined}") == StoreUrl(scheme, host, joined)


def test_a_host_in_a_file_url_is_refused_with_the_right_spelling():
    with pytest.raises(ConfigurationError) as caught:
        parse_store_url("file://backups/pg")
    assert caught.value.status == 2
    assert caught.value.hint == "If you mean the directory /backups/pg, write file://localhost/backups/pg."
    assert "'file://backups/pg'" in caught.value.detail


@pytest.mark.parametrize(
    "url", ["", "backups/pg", "/backups/pg", "file:/backups/pg", "file:backups", "s3:bucket", "http://host/x", "ftp://h/x", "://x", "s3//b/x"]
)
def test_what_is_no_store_url_is_refused_with_the_known_schemes(url):
    with pytest.raises(ConfigurationError) as caught:
        parse_store_url(url)
    assert all(f"{scheme}://" in caught.value.detail for scheme in SCHEMES)
    assert caught.value.hint


@pytest.mark.parametrize("url", ["/backups/pg", "file:/backups/pg"])
def test_a_bare_path_is_answered_with_its_url(url):
    with pytest.raises(ConfigurationError) as caught:
        parse_store_url(url)
    assert caught.value.hint == "For the directory /backups/pg write file://localhost/backups/pg."


@pytest.mark.parametrize("url", ["file://", "file://localhost", "file://backups", "file://./backups", "file://..", "s3://", "s3:///prefix", "gs:///"])
def test_a_url_without_its_path_or_bucket_is_refused(url):
    with pytest.raises(ConfigurationError):
        parse_store_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:S3CRET@bucket/prefix",
        "s3://AKIAKEY@bucket/prefix",
        "s3://AKIAKEY:S3C/RET@bucket/prefix",
        "s3:/AKIAKEY:S3CRET@bucket/prefix",
        "AKIAKEY:S3CRET@bucket",
        "http://AKIAKEY:S3CRET@bucket/prefix",
        "file://AKIAKEY:S3CRET@localhost/prefix",
        "file://AKIAKEY/S3CRET@localhost/prefix",
        "/AKIAKEY:S3CRET@localhost/prefix",
        "swift://AKIAKEY:S3CRET@h:8080/prefix",
    ],
)
def test_credentials_in_a_url_are_refused_and_never_shown(url):
    with pytest.raises(ConfigurationError) as caught:
        parse_store_url(url)
    said = f"{caught.value} {caught.value.hint}"
    assert "S3C" not in said
    assert "RET@" not in said


def test_a_shown_url_keeps_what_is_no_secret():
    assert shown("s3://bucket/prefix") == "s3://bucket/prefix"
    assert shown("s3://key:secret@bucket/prefix") == "s3://...@bucket/prefix"


def test_a_key_is_returned_as_it_is():
    assert checked_key("wal_005/0000000100000000000000AB.lzo") == "wal_005/0000000100000000000000AB.lzo"
