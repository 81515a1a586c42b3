"""Settings: where they come from, and what is said when they cannot be used."""

import pytest

from wal_e.errors import ConfigurationError
from wal_e.settings import TABLE, Settings, read_envdir


def test_every_setting_has_a_default_that_parses():
    for row in TABLE:
        assert getattr(Settings({}), row.field) == row.parse(row.default)


def test_options_win_over_the_environment():
    assert Settings({"WALE_GPG_KEY_ID": "a"}, {"gpg_key_id": "b"}).gpg_key_id == "b"
    assert Settings({"WALE_S3_PREFIX": "s3://x"}, {"file_prefix": "file:///y"}).prefix == "file:///y"


def test_no_prefix_says_what_to_set():
    with pytest.raises(ConfigurationError, match="no storage prefix") as caught:
        _ = Settings({"WALE_FILE_PREFIX": ""}).prefix
    assert "WALE_FILE_PREFIX=file://localhost/" in caught.value.hint


@pytest.mark.parametrize(
    "environ, options", [({"WALE_FILE_PREFIX": "file:///a", "WALE_S3_PREFIX": "s3://b"}, {}), ({}, {"file_prefix": "x", "gs_prefix": "y"})]
)
def test_two_prefixes_are_an_error_that_names_both(environ, options):
    with pytest.raises(ConfigurationError, match="two storage prefixes") as caught:
        _ = Settings(environ, options).prefix
    assert all(name in caught.value.detail for name in (*environ, *(f"--{name.replace('_', '-')}" for name in options)))


def test_one_prefix_said_twice_is_no_contradiction():
    assert Settings({"WALE_FILE_PREFIX": "file:///a", "WALE_S3_PREFIX": "file:///a"}).prefix == "file:///a"


@pytest.mark.parametrize(
    "variable, value",
    [
        ("WALE_FETCH_DEADLINE", "soon"),
        ("WALE_FETCH_DEADLINE", "0"),
        ("WALE_FETCH_DEADLINE", "nan"),
        ("WALE_RETRIES", "0"),
        ("WALE_RETRIES", "1.5"),
        ("WALE_FETCH_STATUS_FAILURE", "256"),
        ("WALE_FETCH_STATUS_FAILURE", "0"),
        ("WALE_LOG_LEVEL", "loud"),
        ("WALE_LOG_DESTINATION", "printer"),
        ("WALE_GPG_KEY_ID", "   "),
        ("WALE_GPG_KEY_ID", "--output"),
    ],
)
def test_a_value_that_cannot_be_used_is_shown_with_what_can(variable, value):
    field = next(row.field for row in TABLE if row.variable == variable)
    with pytest.raises(ConfigurationError, match=variable) as caught:
        getattr(Settings({variable: value}), field)
    assert repr(value) in caught.value.detail
    assert "; it takes " in caught.value.detail


def test_a_setting_that_is_not_used_is_not_complained_about():
    assert Settings({"WALE_RETRIES": "none", "WALE_FETCH_DEADLINE": "5"}).fetch_deadline_s == 5


def test_what_looks_like_ours_and_is_not_is_found():
    assert Settings({"WALE_FILE_PREFIX": "x", "WALE_TYPO": "1", "OTHER": "2", "WALE_RETRIES": "1"}).unknown_variables() == ["WALE_TYPO"]


def test_an_envdir_is_read_as_daemontools_does(tmp_path):
    for name, content in {
        "PLAIN": b"value\nsecond line",
        "SPACES": b"  v v \t\n",
        "NUL": b"a\0b",
        "UNSET": b"",
        "EMPTY": b"\n",
        ".hidden": b"x",
        "a=b": b"x",
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "directory").mkdir()
    assert read_envdir(str(tmp_path)) == {"PLAIN": "value", "SPACES": "  v v", "NUL": "a\nb", "UNSET": None, "EMPTY": ""}


def test_an_envdir_that_cannot_be_read_is_an_error_with_its_path(tmp_path):
    with pytest.raises(ConfigurationError, match="nowhere"):
        read_envdir(str(tmp_path / "nowhere"))
