"""What postmaster.pid says, as servers of all versions write it."""

import pytest

from wal_e.postgres.postmaster import is_stopping

FILE = "4711\n/data\n1700000000\n5432\n/tmp\n\n  5432001        12\n{state}\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (FILE.format(state="stopping"), True),
        (FILE.format(state="stopping") + "more\n", True),
        (FILE.format(state="ready   "), False),
        (FILE.format(state="standby "), False),
        ("4711\n/data\n1700000000\n5432\n/tmp\nstopping\n", False),
        ("", False),
        (None, False),
    ],
)
def test_a_server_that_shuts_down_is_known(tmp_path, content, expected):
    if content is not None:
        (tmp_path / "postmaster.pid").write_text(content)
    assert is_stopping(str(tmp_path / "pg_wal")) is expected
