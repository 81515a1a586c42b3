"""The table that Patroni, Spilo and many scripts read, to the byte."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from wal_e.archive.catalog import Backup
from wal_e.archive.sentinel import Facts, Sentinel
from wal_e.cli.render import HEADER, advice, backup_json, backup_rows, restore_command, shown_time
from wal_e.errors import DamageError
from wal_e.operators.backup_fetch import Fetched
from wal_e.postgres.wal import Lsn

MOMENT = datetime(2015, 5, 18, 10, 13, 25, 123_999, tzinfo=UTC)
NAME = "base_00000001000000000000007F_00000040"
FACTS = Facts(MOMENT, MOMENT, Lsn(0x7F000028), Lsn(0x7F0000F0), 1, 2**64 - 1, 15, 16 << 20, 3, 9, "k", "ab", True, "2.0")
OURS = Backup(NAME, MOMENT + timedelta(days=9), Sentinel("00000001000000000000007F", 240, 167772160, "/data/", (), FACTS), None)
ORIGINAL = Backup(NAME, MOMENT, OURS.sentinel._replace(facts=None), None)
DAMAGED = Backup(NAME, MOMENT, None, DamageError("the sentinel is damaged"))


def test_the_header_and_a_row_with_detail():
    assert HEADER == (
        "name\tlast_modified\texpanded_size_bytes\twal_segment_backup_start\twal_segment_offset_backup_start"
        "\twal_segment_backup_stop\twal_segment_offset_backup_stop\r\n"
    )
    assert (
        backup_rows([ORIGINAL], True)
        == f"{NAME}\t2015-05-18T10:13:25.123Z\t167772160\t00000001000000000000007F\t00000040\t00000001000000000000007F\t00000240\r\n"
    )


@pytest.mark.parametrize("backup", [OURS, ORIGINAL, DAMAGED])
def test_without_detail_sizes_and_ends_are_empty(backup):
    assert backup_rows([backup], False) == f"{NAME}\t2015-05-18T10:13:25.123Z\t\t00000001000000000000007F\t00000040\t\t\r\n"


def test_a_damaged_sentinel_leaves_the_columns_empty_and_is_told_in_json():
    assert backup_rows([DAMAGED], True) == backup_rows([DAMAGED], False)
    assert backup_json(DAMAGED)["damage"] == "the sentinel is damaged"


def test_json_has_the_columns_of_the_table_and_all_that_is_known():
    document = json.loads(json.dumps(backup_json(OURS)))
    assert document["name"] == NAME
    assert document["expanded_size_bytes"] == 167772160
    assert document["finished"] == document["last_modified"] == "2015-05-18T10:13:25.123Z"
    assert document["system_identifier"] == str(2**64 - 1)
    assert (document["start_lsn"], document["stop_lsn"], document["damage"]) == ("0/7F000028", "0/7F0000F0", None)


def test_times_of_any_zone_are_shown_in_utc():
    from datetime import timezone

    assert shown_time(MOMENT.astimezone(timezone(timedelta(hours=5, minutes=30)))) == "2015-05-18T10:13:25.123Z"


def test_the_restore_command_names_the_prefix_and_survives_odd_paths():
    command = restore_command("file://localhost/a b/100%", {})
    assert command.endswith("""--file-prefix 'file://localhost/a b/100%%' wal-fetch "%f" "%p\"""")
    assert "--envdir /etc/e wal-fetch" in restore_command("file://localhost/x", {"envdir": "/etc/e"})


@pytest.mark.parametrize("in_place", [True, False])
def test_the_advice_allows_tablespaces_that_became_directories(in_place):
    text = advice(Fetched(OURS, 15, in_place), "/new data", "file://localhost/x", {}, {})
    assert ("echo 'allow_in_place_tablespaces = on' >> '/new data/postgresql.auto.conf'\n" in text) == in_place
