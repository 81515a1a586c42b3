"""``--envdir DIR``: each file a variable, over the environment, below the options; for every verb alike."""

from __future__ import annotations

import os
import subprocess

import pytest
from build_wal import build_segment
from fix_archive import refusal, script

NAME = "000000010000000000000007"
UNREAD = "/nowhere"


@pytest.fixture
def store(tmp_path):
    """A store with one WAL file, pushed with nothing but an envdir."""
    store = tmp_path / "store"
    store.mkdir()
    segment = tmp_path / NAME
    segment.write_bytes(build_segment(NAME))
    envdir = made(tmp_path / "first", WALE_FILE_PREFIX=f"file://localhost{store}\n")
    assert run("--envdir", envdir, "wal-push", segment).returncode == 0
    return store


def made(directory, **contents):
    """Make an envdir."""
    directory.mkdir()
    for name, content in contents.items():
        (directory / name).write_bytes(content if isinstance(content, bytes) else os.fsencode(content))
    return directory


def run(*words, env=None, cwd=None):
    """Run wal-e in an environment that has nothing of ours but where to log."""
    environ = {"PATH": os.environ["PATH"], "WALE_LOG_DESTINATION": "stderr", **(env or {})}
    return subprocess.run([script(), *map(str, words)], env=environ, cwd=cwd, capture_output=True, text=True, timeout=60)


def fetched(tmp_path, *options, env=None, cwd=None):
    """Fetch the stored segment; return the run, whose status is 0 when the prefix was understood."""
    return run(*options, "wal-fetch", NAME, tmp_path / "RECOVERYXLOG", "-p", "0", env=env, cwd=cwd)


@pytest.mark.parametrize(
    "content",
    [
        "file://localhost{store}",
        "file://localhost{store}\n",
        "file://localhost{store} \t \n",
        "file://localhost{store}\r\n",
        "file://localhost{store}\nnoise\n",
    ],
)
def test_a_variable_is_the_first_line_of_its_file_without_trailing_space(tmp_path, store, content):
    envdir = made(tmp_path / "env", WALE_FILE_PREFIX=content.format(store=store))
    assert fetched(tmp_path, "--envdir", envdir).returncode == 0
    assert fetched(tmp_path, f"--envdir={envdir}").returncode == 0
    assert run("--envdir", envdir, "backup-list").returncode == 0


def test_it_wins_over_the_environment_and_options_win_over_it(tmp_path, store):
    right, wrong = f"file://localhost{store}", f"file://localhost{UNREAD}"
    good, bad = made(tmp_path / "good", WALE_FILE_PREFIX=right), made(tmp_path / "bad", WALE_FILE_PREFIX=wrong)
    assert fetched(tmp_path, "--envdir", good, env={"WALE_FILE_PREFIX": wrong}).returncode == 0
    assert fetched(tmp_path, "--envdir", bad, "--file-prefix", right, env={"WALE_FILE_PREFIX": wrong}).returncode == 0
    refusal(fetched(tmp_path, "--envdir", bad, env={"WALE_FILE_PREFIX": right}), 200, UNREAD)


@pytest.mark.parametrize(("content", "status"), [(b"", 0), (b"\n", 0), (b"  \n", 0), (b"s3://bucket/pg", 200)])
def test_an_empty_file_takes_a_variable_out_of_the_environment(tmp_path, store, content, status):
    envdir = made(tmp_path / "env", WALE_FILE_PREFIX=f"file://localhost{store}", WALE_S3_PREFIX=content)
    assert fetched(tmp_path, "--envdir", envdir, env={"WALE_S3_PREFIX": "s3://bucket/pg"}).returncode == status


def test_two_prefixes_in_it_are_refused(tmp_path, store):
    envdir = made(tmp_path / "env", WALE_FILE_PREFIX=f"file://localhost{store}", WALE_GS_PREFIX="gs://bucket/pg")
    refusal(run("--envdir", envdir, "backup-list"), 2, "two storage prefixes are set", "WALE_FILE_PREFIX, WALE_GS_PREFIX")


def test_names_with_a_dot_before_them_and_directories_are_passed_over(tmp_path, store):
    """As a mounted secret of Kubernetes looks: the files are links through ``..data``."""
    made(tmp_path / "..2026", WALE_FILE_PREFIX=f"file://localhost{store}")
    envdir = made(tmp_path / "env", **{".WALE_S3_PREFIX": "s3://bucket/pg", "WALE_GS_PREFIX=": "gs://bucket/pg"})
    (envdir / "..data").symlink_to("../..2026")
    (envdir / "WALE_FILE_PREFIX").symlink_to("..data/WALE_FILE_PREFIX")
    (envdir / "WALE_SWIFT_PREFIX").mkdir()
    assert fetched(tmp_path, "--envdir", envdir).returncode == 0


def test_a_nul_stands_for_a_newline(tmp_path, store):
    envdir = made(tmp_path / "env", WALE_FILE_PREFIX=f"file://localhost{store}\0more")
    refusal(run("--envdir", envdir, "backup-list"), 2, f"{store}\n")


@pytest.mark.parametrize(("words", "status"), [(["backup-list"], 2), (["wal-push", NAME], 2), (["wal-fetch", NAME, "x"], 200), (["backup-push", "x"], 2)])
def test_one_that_cannot_be_read_is_refused_by_every_verb(tmp_path, store, words, status):
    for path, said in ((tmp_path / "absent", "No such file"), (tmp_path / NAME, "Not a directory")):
        refusal(run("--envdir", path, *words, env={"WALE_FILE_PREFIX": f"file://localhost{store}"}), status, f"reading {path} for --envdir", said)


def test_a_file_in_it_that_cannot_be_read_is_named_and_never_passed_over(tmp_path, store):
    envdir = made(tmp_path / "env", WALE_FILE_PREFIX=f"file://localhost{store}")
    (envdir / "WALE_GPG_KEY_ID").symlink_to("/nowhere/key")
    for words in (["backup-list"], ["wal-push", NAME]):
        refusal(run("--envdir", envdir, *words, cwd=tmp_path), 2, f"reading {envdir}/WALE_GPG_KEY_ID for --envdir", "No such file")


def test_a_relative_one_lies_in_the_working_directory(tmp_path, store):
    made(tmp_path / "env", WALE_FILE_PREFIX=f"file://localhost{store}")
    assert fetched(tmp_path, "--envdir", "env", cwd=tmp_path).returncode == 0


def test_programs_are_looked_for_on_its_path(tmp_path, store):
    envdir = made(tmp_path / "env", WALE_FILE_PREFIX=f"file://localhost{store}", PATH=UNREAD)
    refusal(fetched(tmp_path, "--envdir", envdir), 200, "lzop cannot be started", f"PATH is {UNREAD}.")


def test_its_statuses_and_its_log_settings_count(tmp_path, store):
    envdir = made(tmp_path / "env", WALE_FILE_PREFIX=f"file://localhost{UNREAD}", WALE_FETCH_STATUS_FAILURE="199", WALE_LOG_LEVEL="info")
    refusal(fetched(tmp_path, "--envdir", envdir), 199, UNREAD)
    (envdir / "WALE_FILE_PREFIX").write_text(f"file://localhost{store}")
    assert f"fetched {NAME}" in fetched(tmp_path, "--envdir", envdir).stderr


def test_it_must_be_named_before_the_verb(tmp_path, store):
    envdir = made(tmp_path / "env", WALE_FILE_PREFIX=f"file://localhost{store}")
    refusal(run("backup-list", "--envdir", envdir), 2, "no such option")
    refusal(run("wal-fetch", NAME, tmp_path / "RECOVERYXLOG", "--envdir", envdir), 200, "no such option")
