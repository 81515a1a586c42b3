"""wal-verify and wal-show over a store in memory: verdicts, what is read and what is remembered, and how it looks."""

import json
from datetime import UTC, datetime, timedelta

import build_wal
import pytest
from build_pages import SIZE, build_pages
from fix_memory import open_memory

from wal_e.archive import layout
from wal_e.archive.identity import claim_identity
from wal_e.archive.layout import BackupName
from wal_e.archive.sentinel import Facts, Sentinel, render_sentinel
from wal_e.blobstore.memory import MemoryStore
from wal_e.blobstore.wrappers import ReadOnly
from wal_e.cli.wal_json import survey_json, verdict_json
from wal_e.cli.wal_text import ASCII, UNICODE, tree_text, verdict_text
from wal_e.errors import BackupNotFound, BlobFrozen, DamageError, ServerUnavailable, StoreForbidden, StoreUnavailable, WalGap
from wal_e.operators import wal_content, wal_verify
from wal_e.operators.wal_survey import look
from wal_e.operators.wal_verify import Reading, ServerView, combined, verify
from wal_e.postgres.monitor import ArchiverStats
from wal_e.postgres.wal import Lsn, segment_name

NOW = datetime(2026, 3, 9, tzinfo=UTC)
NEW, AGAIN = Reading(2, "new"), Reading(2, "again")


class Store(MemoryStore):
    """A memory store whose clock is set, whose reads are counted by key, and where reading some keys fails."""

    def __init__(self):
        super().__init__()
        self.now = NOW
        self.reads = []
        self.failing = {}

    def put(self, key, chunks):
        size = super().put(key, chunks)
        self._contents[key] = (self._contents[key][0], self.now)
        return size

    def get(self, key, *, start=0, length=None):
        self.reads.append(key)
        if key in self.failing:
            raise self.failing[key]
        return super().get(key, start=start, length=length)


@pytest.fixture
def store():
    made = Store()
    claim_identity(made, build_wal.SYSTEM_IDENTIFIER, ".lzo")
    return made


@pytest.fixture
def archive(store):
    return open_memory(store)


def segment(timeline, number):
    return segment_name(timeline, number * SIZE, SIZE)


def key(timeline, number):
    return layout.wal_key(segment(timeline, number), ".lzo")


def put_file(archive, name, content):
    archive.store.put(layout.wal_key(name, ".lzo"), list(archive.pipeline.encode(lambda stream: stream.write(content))))


def put_history(archive, timeline, *switches):
    put_file(archive, f"{timeline:08X}.history", "".join(f"{one}\t{Lsn(number * SIZE + 4711)}\twhy\n" for one, number in switches).encode())


def put_wal(archive, timeline, numbers):
    """Names only: for what is not read."""
    for number in numbers:
        archive.store.put(key(timeline, number), [b"w" * 1000])


def put_segments(archive, timeline, numbers):
    for number in numbers:
        put_file(archive, segment(timeline, number), build_pages(segment(timeline, number)))


def put_backup(store, timeline, first, last, *, finished=NOW, facts=True, online=True):
    name = str(BackupName(segment(timeline, first), 40))
    start, stop = Lsn(first * SIZE + 40), Lsn((last + 1) * SIZE - 100)
    known = Facts(finished, finished, start, stop, timeline, build_wal.SYSTEM_IDENTIFIER, 15, SIZE, 2, 1, "k", "h", online, "2")
    sentinel = Sentinel(segment(timeline, last), SIZE - 100, 1, "/x", (), known if facts else None)
    store.put(layout.sentinel_key(name), [render_sentinel(sentinel)])
    return name


def server_view(name, *, archived=NOW):
    return ServerView(ArchiverStats(name, archived, None, None, 7, 0, None), None)


def checked_keys(store):
    return sorted(key for key in store.reads if key.startswith("wal_005/") and not key.endswith(".history.lzo"))


# --- the verdict ---


def test_an_empty_prefix_may_be_a_wrong_one_and_is_not_called_whole(archive):
    verdict = verify(archive, None, NEW)
    assert [(type(problem), problem.status) for problem in verdict.problems] == [(BackupNotFound, 1)]
    assert "NOTHING can be recovered" in verdict_text(verdict)
    assert verdict_json(verdict)["timelines"] == []


def test_wal_without_a_backup_has_gaps_that_nobody_needs(store, archive):
    put_wal(archive, 1, [1, 2, 5])
    verdict = verify(archive, None)
    assert (len(verdict.survey.gaps), verdict.problems) == (1, [])


def test_a_backup_of_the_original_needs_the_wal_from_its_start_to_its_end(store, archive):
    name = put_backup(store, 1, 3, 5, facts=False)
    put_segments(archive, 1, [1, 2, 3, 4])
    (problem,) = verify(archive, None).problems
    assert isinstance(problem, WalGap)
    assert segment(1, 5) in problem.message
    assert name in problem.detail
    put_wal(archive, 1, [5])
    assert verify(archive, None).problems == []


@pytest.mark.parametrize("readable", [True, False])
def test_without_a_sentinel_that_tells_the_segment_size_comes_from_a_segment_or_from_the_names(store, archive, readable):
    put_backup(store, 1, 0xFFF, 0x1001, facts=False)
    (put_segments if readable else put_wal)(archive, 1, range(0xFFE, 0x1002))
    verdict = verify(archive, None)
    assert verdict.problems == []
    assert verdict.survey.wal.segment_size == SIZE
    assert [tuple(one) for one in verdict.survey.wal.segments_of(1)] == [(0xFFE, 0x1001)]


def test_segments_that_are_larger_than_usual_tell_their_size_themselves(store, archive):
    for number in (0x3E, 0x3F, 0x40):
        name = segment_name(1, number * 64 * SIZE, 64 * SIZE)
        put_file(archive, name, build_wal.build_header(name, 64 * SIZE) + bytes(64 * SIZE - 40))
    survey = look(archive)
    assert survey.wal.segment_size == 64 * SIZE
    assert survey.gaps == []


def test_the_backup_that_cannot_be_used_is_named_before_one_that_merely_ends_early(store, archive):
    put_backup(store, 1, 3, 4)
    unusable = put_backup(store, 1, 7, 8, finished=NOW + timedelta(1))
    put_wal(archive, 1, [3, 4, 6, 7])
    (problem,) = verify(archive, None).problems
    assert segment(1, 8) in problem.message
    assert unusable in problem.detail
    assert "cannot be used" in problem.detail
    assert "1 other backup" in problem.detail


def test_a_damaged_sentinel_is_told_and_the_wal_of_the_others_is_judged(store, archive, capsys):
    put_backup(store, 1, 3, 4)
    broken = put_backup(store, 1, 6, 6)
    store.put(layout.sentinel_key(broken), [b"{"])
    put_wal(archive, 1, range(3, 8))
    verdict = verify(archive, None)
    assert verdict.problems == []
    assert layout.sentinel_key(broken) in capsys.readouterr().err
    assert f"backup {broken}: DAMAGED" in verdict_text(verdict)
    assert [one["damage"] is None for one in verdict_json(verdict)["backups"]] == [True, False]


def test_a_damaged_history_is_damage_even_without_reading_the_content(store, archive):
    put_backup(store, 1, 3, 4)
    put_wal(archive, 1, range(3, 9))
    put_wal(archive, 2, range(9, 12))
    put_file(archive, "00000002.history", b"nonsense\n")
    problems = verify(archive, None).problems
    assert isinstance(problems[0], DamageError)
    assert "00000002.history" in problems[0].detail


def test_wal_of_a_timeline_whose_history_is_lost_is_a_gap_unless_a_backup_was_made_there(store, archive):
    put_backup(store, 1, 3, 4)
    put_wal(archive, 1, range(3, 9))
    put_wal(archive, 2, range(9, 12))
    (problem,) = verify(archive, None).problems
    assert isinstance(problem, WalGap)
    assert "00000002.history" in problem.message
    put_backup(store, 2, 10, 10)
    assert verify(archive, None).problems == []


def test_a_segment_that_is_still_being_received_is_shown_and_never_counts(store, archive):
    put_backup(store, 1, 3, 4)
    put_wal(archive, 1, [3])
    store.put(layout.streaming_key(segment(1, 4), ".lzo"), [b"x"])
    verdict = verify(archive, None, NEW)
    assert [type(problem) for problem in verdict.problems] == [DamageError, WalGap]
    assert f"{segment(1, 4)} still being received" in verdict_text(verdict)
    assert [finding.key for finding in verdict.content.damaged] == [key(1, 3)]


# --- the server ---


def test_what_the_server_archived_last_and_all_before_it_must_be_there(store, archive):
    put_backup(store, 1, 3, 4)
    put_wal(archive, 1, range(3, 9))
    assert verify(archive, server_view(segment(1, 8))).problems == []
    verdict = verify(archive, server_view(segment(1, 11)), None, "/pg")
    (problem,) = verdict.problems
    assert (segment(1, 9) in problem.message, "wal-push --missing /pg" in problem.hint) == (True, True)
    assert (verdict.server.stored, [gap.first for gap in verdict.survey.gaps]) == (False, [9])


def test_without_a_backup_what_the_server_archived_last_must_be_there_all_the_same(store, archive):
    put_wal(archive, 1, [3])
    for name in (segment(1, 4), "00000002.history", f"{segment(1, 3)}.00000028.backup"):
        (problem,) = verify(archive, server_view(name)).problems
        assert name in problem.message
    assert verify(archive, server_view(segment(1, 3))).problems == []
    assert verify(archive, server_view(None)).problems == []


def test_what_a_deletion_took_is_not_missed_when_the_server_has_not_archived_since(store, archive):
    put_wal(archive, 2, [5, 6])
    for name in (segment(2, 4), segment(1, 9), f"{segment(2, 4)}.00000028.backup"):
        assert verify(archive, server_view(name)).problems == []
    for name in (segment(2, 7), segment(3, 4), "00000001.history"):
        assert len(verify(archive, server_view(name)).problems) == 1


def test_the_servers_own_timeline_counts_even_if_a_newer_one_was_tried_beside_it(store, archive):
    put_backup(store, 1, 3, 4)
    put_wal(archive, 1, [3, 4, 5, 6, 8, 9])
    put_wal(archive, 2, [6, 7])
    put_history(archive, 2, (1, 6))
    assert verify(archive, None).problems == []
    (problem,) = verify(archive, server_view(segment(1, 9))).problems
    assert segment(1, 7) in problem.message


@pytest.mark.parametrize(("age", "problems"), [(timedelta(minutes=1), 0), (timedelta(hours=2), 1)])
def test_what_comes_after_the_servers_archiving_of_this_hour_was_pushed_ahead_and_is_no_gap(store, archive, age, problems):
    put_backup(store, 1, 3, 4)
    put_wal(archive, 1, [3, 4, 5, 7])
    assert len(verify(archive, server_view(segment(1, 5), archived=datetime.now(UTC) - age)).problems) == problems


def test_a_server_that_does_not_answer_is_a_problem_only_when_it_was_asked_by_its_directory(archive):
    put_wal(archive, 1, [1])
    silent = ServerView(None, ServerUnavailable("no answer", "None at all."))
    assert verify(archive, silent).problems == []
    verdict = verify(archive, silent, None, "/pg")
    assert verdict.problems == [silent.silence]
    assert "server: did not answer: no answer" in verdict_text(verdict)


def test_a_segment_that_comes_in_while_we_look_is_no_gap(store, archive, monkeypatch):
    store.now = datetime.now(UTC)
    put_backup(store, 1, 3, 4)
    put_wal(archive, 1, [3, 4, 6])
    monkeypatch.setattr(wal_verify.time, "sleep", lambda _: put_wal(archive, 1, [5]))
    assert verify(archive, None).problems == []


def test_an_archive_that_does_not_grow_is_not_waited_for(store, archive, monkeypatch):
    put_backup(store, 1, 3, 4)
    put_wal(archive, 1, [3, 4, 6])
    monkeypatch.setattr(wal_verify.time, "sleep", lambda _: pytest.fail("it waits"))
    assert len(verify(archive, None).problems) == 1


def test_several_problems_are_one_error_with_the_status_of_the_worst():
    error = combined([DamageError("one", "First.", "Do."), WalGap("two", "Second.", "Do more.")])
    assert (type(error), error.message, error.hint) == (DamageError, "one", "Do.")
    assert error.detail == "First. Also: two. Second."


# --- the content ---


@pytest.fixture
def full(store, archive):
    """Two timelines with all kinds of files; every one of them is good."""
    put_backup(store, 1, 3, 4)
    put_segments(archive, 1, range(3, 7))
    put_segments(archive, 2, range(7, 9))
    put_history(archive, 2, (1, 7))
    partial = build_pages(segment(1, 7))
    put_file(archive, f"{segment(1, 7)}.partial", partial[:65536] + build_pages(segment(1, 2))[65536:])  # what was in the file before
    label = f"START WAL LOCATION: {Lsn(3 * SIZE + 40)} (file {segment(1, 3)})\nCHECKPOINT LOCATION: {Lsn(3 * SIZE + 96)}\n"
    put_file(archive, f"{segment(1, 3)}.00000028.backup", label.encode())
    store.reads.clear()
    return store


def files(store):
    return sorted(blob.key for blob in store.list(layout.WAL))


def test_all_is_read_once_and_then_never_again(full, archive):
    first = verify(archive, None, NEW).content
    assert (first.checked, first.known, first.damaged) == (len(files(full)), 0, [])
    full.reads.clear()
    received = archive.store.received_bytes
    second = verify(archive, None, NEW).content
    assert (second.checked, second.known) == (0, len(files(full)))
    assert checked_keys(full) == []
    history = next(blob.size for blob in full.list("wal_005/00000002.history"))
    small = sum(blob.size for blob in full.list() if blob.key.endswith(".json"))
    assert archive.store.received_bytes - received == history + small


def test_what_is_new_is_read_and_joins_what_is_known(full, archive):
    verify(archive, None, NEW)
    full.now += timedelta(hours=1)
    put_segments(archive, 2, [9])
    full.reads.clear()
    assert verify(archive, None, NEW).content.checked == 1
    assert checked_keys(full) == [key(2, 9)]
    assert json.loads(b"".join(full.get(layout.CHECKED)))["segments"]["00000002"] == [[segment(2, 7), segment(2, 9)]]


def test_again_reads_everything(full, archive):
    verify(archive, None, NEW)
    assert verify(archive, None, AGAIN).content.checked == len(files(full))


def test_what_was_replaced_after_its_check_is_read_again_and_damage_is_never_remembered(full, archive):
    verify(archive, None, NEW)
    full.now += timedelta(hours=1)
    put_file(archive, segment(1, 5), build_pages(segment(1, 4)))
    for _ in range(2):
        verdict = verify(archive, None, NEW)
        assert [finding.key for finding in verdict.content.damaged] == [key(1, 5)]
        assert "another segment" in verdict.problems[0].detail
    put_file(archive, segment(1, 5), build_pages(segment(1, 5)))
    assert verify(archive, None, NEW).problems == []


def test_damage_leaves_a_hole_in_what_is_remembered(full, archive):
    put_file(archive, segment(1, 5), b"no segment")
    verify(archive, None, NEW)
    assert json.loads(b"".join(full.get(layout.CHECKED)))["segments"]["00000001"] == [[segment(1, 3), segment(1, 4)], [segment(1, 6), segment(1, 6)]]


def test_every_damaged_file_is_reported_whatever_its_kind(full, archive):
    victims = files(full)
    for name in victims:
        put_file(archive, layout.parse_wal_key(name, [".lzo"]), b"nonsense\n")
    verdict = verify(archive, None, NEW)
    assert [finding.key for finding in verdict.content.damaged] == victims
    assert f"{len(victims)} stored WAL files are damaged" in verdict.problems[0].message


def test_the_history_of_another_backup_is_damage(full, archive):
    label = f"START WAL LOCATION: {Lsn(4 * SIZE + 40)} (file {segment(1, 4)})\nCHECKPOINT LOCATION: {Lsn(4 * SIZE + 96)}\n"
    put_file(archive, f"{segment(1, 3)}.00000028.backup", label.encode())
    (finding,) = verify(archive, None, NEW).content.damaged
    assert "another backup" in finding.reason


def test_a_segment_of_another_cluster_is_damage(full, archive):
    put_file(archive, segment(1, 5), build_pages(segment(1, 5), system_identifier=7))
    (finding,) = verify(archive, None, NEW).content.damaged
    assert "another cluster" in finding.reason


def test_the_segment_in_which_a_timeline_was_left_is_judged_up_to_there(full, archive):
    stale = build_pages(segment(1, 7))[:16384] + build_pages(segment(1, 2))[16384:]
    put_file(archive, segment(1, 7), stale)  # the switch is at byte 4711 of it
    assert verify(archive, None, NEW).problems == []
    full.now += timedelta(hours=1)
    put_file(archive, segment(1, 6), build_pages(segment(1, 6))[:16384] + build_pages(segment(1, 2))[16384:])
    assert [finding.key for finding in verify(archive, None, NEW).content.damaged] == [key(1, 6)]


def test_a_run_that_ends_early_keeps_what_it_had_found(full, archive, monkeypatch):
    monkeypatch.setattr(wal_content, "REMEMBER_EVERY_S", 0.0)
    full.failing = {key(2, 8): StoreForbidden("no permission", "")}
    with pytest.raises(StoreForbidden):
        verify(archive, None, NEW)
    full.failing = {}
    verdict = verify(archive, None, NEW)
    assert verdict.content.known > 2
    assert verdict.content.checked + verdict.content.known == len(files(full))


def test_two_runs_at_once_leave_a_whole_document_and_the_next_one_works(full, archive):
    verify(archive, None, NEW)
    other = open_memory(full)
    document = b"".join(full.get(layout.CHECKED))
    full.now += timedelta(hours=1)
    put_segments(archive, 2, [9])
    verify(archive, None, NEW)
    full.put(layout.CHECKED, [document])  # the other run, which began earlier, comes last
    assert verify(other, None, NEW).content.checked == 1
    assert verify(other, None, NEW).content.checked == 0


def test_where_nothing_may_be_written_the_content_is_checked_all_the_same(full, archive, monkeypatch, capsys):
    def refuse(key, chunks):
        raise StoreForbidden("no permission to write", "")

    monkeypatch.setattr(full, "put", refuse)
    assert verify(archive, None, NEW).content.checked == len(files(full))
    assert "cannot be remembered" in capsys.readouterr().err


def test_a_file_in_an_archive_tier_is_neither_good_nor_damaged_and_is_reported(full, archive):
    full.failing = {key(1, 5): BlobFrozen("frozen", "It is in Glacier.")}
    verdict = verify(archive, None, NEW)
    assert [finding.key for finding in verdict.content.unreadable] == [key(1, 5)]
    assert [type(problem) for problem in verdict.problems] == [BlobFrozen]
    assert verdict.content.checked == len(files(full)) - 1


def test_a_store_that_is_away_is_no_verdict(full, archive):
    full.failing = {key(1, 5): StoreUnavailable("away", "")}
    with pytest.raises(StoreUnavailable):
        verify(archive, None, NEW)


def test_a_look_changes_nothing(full):
    survey = look(open_memory(ReadOnly(full)))
    assert survey.reaches[0].missing is None
    assert verify(open_memory(ReadOnly(full)), None).problems == []


# --- how it looks ---


@pytest.fixture
def storied(store, archive):
    """Three timelines, one beside them that nobody knows the origin of, and every kind of trouble."""
    put_backup(store, 1, 2, 2)
    put_backup(store, 1, 5, 6, finished=NOW + timedelta(hours=1))
    put_wal(archive, 1, [0, 2, 3, 5, 7, 8])
    store.put(layout.wal_key(f"{segment(1, 9)}.partial", ".lzo"), [b"p"])
    put_history(archive, 2, (1, 9))
    put_wal(archive, 2, [9, 10])
    put_history(archive, 3, (1, 9), (2, 11))
    put_wal(archive, 3, [11, 12, 13])
    store.now += timedelta(hours=2)
    put_backup(store, 3, 12, 12, finished=NOW + timedelta(hours=2))
    put_wal(archive, 3, [14])
    put_wal(archive, 9, [1])
    store.put("wal_005/readme.txt", [b"hello"])
    return archive


GOLDEN = """\
memory://localhost: WAL of the system 7710235014459963137, in segments of 1.0 MiB

timeline 1: 000000010000000000000000 to 000000010000000000000008, 6 segments, 5.9 KiB, newest 2026-03-09T00:00:00.000Z, 000000010000000000000009 partial
├── gap: 000000010000000000000001 is missing, which no backup needs
├── backup base_000000010000000000000002_00000040, finished 2026-03-09T00:00:00.000Z: BROKEN, usable up to 000000010000000000000003, then 000000010000000000000004 is missing
├── GAP: 000000010000000000000004 is missing, needed by base_000000010000000000000002_00000040
├── backup base_000000010000000000000005_00000040, finished 2026-03-09T01:00:00.000Z: UNUSABLE, 000000010000000000000006 is missing
├── GAP: 000000010000000000000006 is missing, needed by base_000000010000000000000002_00000040 and 1 other backup
└── timeline 2, left timeline 1 at 0/901267: 000000020000000000000009 to 00000002000000000000000A, 2 segments, 2.0 KiB, newest 2026-03-09T00:00:00.000Z
    └── timeline 3, left timeline 2 at 0/B01267: 00000003000000000000000B to 00000003000000000000000E, 4 segments, 3.9 KiB, newest 2026-03-09T02:00:00.000Z
        └── backup base_00000003000000000000000C_00000040, finished 2026-03-09T02:00:00.000Z: good, up to 00000003000000000000000E
timeline 9: 000000090000000000000001 to 000000090000000000000001, 1 segment, 1000 B, newest 2026-03-09T02:00:00.000Z, NO HISTORY FILE
1 segment that no backup needs
1 object beside the WAL that is none of it

1 of 3 backups can be recovered to the end of the stored WAL
the newest of them: base_00000003000000000000000C_00000040, up to 00000003000000000000000E, stored 2026-03-09T02:00:00.000Z
"""  # noqa: E501  # lines as they are printed


def test_the_tree_nests_timelines_and_shows_backups_and_gaps_at_their_place(storied):
    assert tree_text(look(storied), UNICODE) == GOLDEN


def test_the_tree_can_do_without_boxes(storied):
    plain = GOLDEN.replace("├── ", "|-- ").replace("└── ", "`-- ")
    assert tree_text(look(storied), ASCII) == plain


def test_a_timeline_of_which_only_a_descendant_tells_has_its_place_in_the_tree(store, archive):
    put_backup(store, 1, 3, 4)
    put_wal(archive, 1, range(3, 6))
    put_history(archive, 3, (1, 6), (2, 9))
    put_wal(archive, 3, [9, 10])
    lines = tree_text(look(archive), UNICODE).splitlines()
    assert lines[4].startswith("└── timeline 2, left timeline 1 at 0/601267: no whole segment, NO HISTORY FILE")
    assert lines[5].startswith("    ├── GAP: 000000020000000000000006 to 000000020000000000000008 are missing, 3 segments, needed by base_")
    assert lines[6].startswith("    └── timeline 3, left timeline 2 at 0/901267: ")


def test_the_json_says_the_same(storied):
    document = survey_json(look(storied))
    assert json.loads(json.dumps(document)) == document
    assert [(one["timeline"], one["parent"], one["left_parent_at"], one["history"]) for one in document["timelines"]] == [
        (1, None, None, None),
        (2, 1, "0/901267", "stored"),
        (3, 2, "0/B01267", "stored"),
        (9, None, None, None),
    ]
    assert [(span["first"][-2:], span["last"][-2:], span["segments"]) for span in document["timelines"][0]["ranges"]] == [
        ("00", "00", 1), ("02", "03", 2), ("05", "05", 1), ("07", "08", 2),
    ]  # fmt: skip
    assert [(gap["first"][-2:], len(gap["needed_by"])) for gap in document["gaps"]] == [("01", 0), ("04", 1), ("06", 2)]
    old, middle, new = document["backups"]
    assert (old["usable"], old["target_timeline"], old["missing"][-2:], old["recovers_to"][-2:]) == (True, 3, "04", "03")
    assert (middle["usable"], middle["missing"][-2:], [span["segments"] for span in middle["needs"]]) == (False, "06", [2])
    assert (new["usable"], new["missing"], new["recovers_to"]) == (True, None, segment(3, 14))
    assert (document["needless_segments"], document["unknown_objects"], document["system_identifiers"]) == (1, 1, [str(build_wal.SYSTEM_IDENTIFIER)])


def test_the_lines_of_the_verdict_have_the_server_and_the_content(full, archive):
    put_file(archive, segment(1, 5), b"nonsense")
    text = verdict_text(verify(archive, server_view(segment(2, 8)), NEW))
    assert f"server: archived {segment(2, 8)} last at 2026-03-09T00:00:00.000Z, which is stored\n" in text
    assert "content: 8 files read and good" in text
    assert f"  damaged: {key(1, 5)}: " in text
    assert text.endswith("NOT WHOLE, see the error\n")


def test_a_backup_comes_no_further_than_the_first_damaged_segment(full, archive):
    for number in (5, 6):
        put_file(archive, segment(1, number), b"nonsense")
    verdict = verify(archive, None, NEW)
    text = verdict_text(verdict)
    assert f": BROKEN, usable up to {segment(1, 4)}, then {segment(1, 5)} is damaged\n" in text
    assert "0 of 1 backup can be recovered to the end of the stored WAL\n" in text
    [backup] = verdict_json(verdict)["backups"]
    assert (backup["usable"], backup["missing"], backup["recovers_to"]) == (True, segment(1, 5), segment(1, 4))
    assert ": good, up to" in verdict_text(verify(archive, None))


def test_of_a_missing_and_a_damaged_segment_the_first_one_counts(full, archive):
    put_file(archive, segment(2, 8), b"nonsense")
    full.delete([key(2, 7)])
    assert f", then {segment(2, 7)} is missing\n" in verdict_text(verify(archive, None, NEW))
    put_file(archive, segment(1, 3), b"nonsense")
    assert f": UNUSABLE, {segment(1, 3)} is damaged\n" in verdict_text(verify(archive, None, AGAIN))
