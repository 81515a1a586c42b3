"""The sentinel, WAL-E's and ours."""

import json
from datetime import UTC, datetime

import pytest

from wal_e.archive.sentinel import Facts, PageChecks, Sentinel, StoredConfiguration, Tablespace, parse_sentinel, render_sentinel
from wal_e.errors import DamageError
from wal_e.postgres.page import DamagedPages
from wal_e.postgres.wal import Lsn

NAME = "base_00000001000000000000007F_00000040"
MOMENT = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
FACTS = Facts(MOMENT, MOMENT, Lsn.parse("0/7F000028"), Lsn.parse("0/7F0000F0"), 1, 2**64 - 1, 15, 16 << 20, 3, 1000, "k", "ab" * 32, True, "2.0")
SENTINEL = Sentinel("00000001000000000000007F", 240, 167772160, "/var/lib/pg", (Tablespace("16400", "/fast"),), FACTS)


def test_what_was_written_is_read():
    assert parse_sentinel(render_sentinel(SENTINEL), NAME) == SENTINEL._replace(base_prefix="/var/lib/pg/", tablespaces=(Tablespace("16400", "/fast/"),))


def test_the_original_finds_its_keys_with_its_types():
    document = json.loads(render_sentinel(SENTINEL))
    assert len(document.pop("sha256")) == 64
    assert document.pop("wal_e")["system_identifier"] == str(2**64 - 1)
    assert document == {
        "wal_segment_backup_stop": "00000001000000000000007F",
        "wal_segment_offset_backup_stop": "00000240",
        "expanded_size_bytes": 167772160,
        "spec": {"base_prefix": "/var/lib/pg/", "tablespaces": ["16400"], "16400": {"loc": "/fast/", "link": "pg_tblspc/16400"}},
    }


@pytest.mark.parametrize("spec", [{}, {"spec": {}}, {"Spec": {"base_prefix": "/x/", "tablespaces": []}}])
def test_a_sentinel_of_the_original_is_read(spec):
    document = {"wal_segment_backup_stop": "S", "wal_segment_offset_backup_stop": "00000240", "expanded_size_bytes": 5, **spec}
    sentinel = parse_sentinel(json.dumps(document).encode(), NAME)
    assert (sentinel.stop_offset, sentinel.expanded_bytes, sentinel.facts) == (240, 5, None)


def test_any_changed_byte_is_damage():
    data = render_sentinel(SENTINEL)
    for at in range(len(data)):
        for bit in (1, 32):
            with pytest.raises(DamageError, match=f"{NAME}_backup_stop_sentinel.json"):
                parse_sentinel(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :], NAME)


def test_damaged_pages_of_the_source_come_back_as_they_were_found():
    checks = PageChecks(1234, (DamagedPages("base/5/16404", ((3, 7), (12, 12))), DamagedPages("global/1260", ((0, 0),))))
    sentinel = SENTINEL._replace(facts=FACTS._replace(page_checksums=checks))
    assert parse_sentinel(render_sentinel(sentinel), NAME).facts.page_checksums == checks
    stored = json.loads(render_sentinel(sentinel))["wal_e"]["page_checksums"]
    assert stored["damaged"][0] == {"relation": "base/5/16404", "blocks": [[3, 7], [12, 12]]}


def test_what_is_kept_of_the_configuration_comes_back_as_it_was_whatever_its_names():
    kept = StoredConfiguration("k", 17, "cd" * 32, ("/etc/my möbel/a.conf", "/etc/\udcff"), {"config_file": "/etc/my möbel/a.conf", "hba_file": "pg_hba.conf"})
    sentinel = SENTINEL._replace(facts=FACTS._replace(configuration=kept))
    assert parse_sentinel(render_sentinel(sentinel), NAME).facts.configuration == kept
    assert "configuration" not in json.loads(render_sentinel(SENTINEL))["wal_e"]


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b"{}", b"null", b'"x"', b"\xff\xfe", b'{"wal_segment_backup_stop": 1}'])
def test_what_cannot_be_understood_is_damage_that_names_the_key(content):
    with pytest.raises(DamageError, match=f"{NAME}_backup_stop_sentinel.json"):
        parse_sentinel(content, NAME)
