"""Numbers for a monitoring system: Prometheus' text format, and a file of it that is always whole.

The format is version 0.0.4 of the text exposition format: ``# HELP`` and ``# TYPE`` once per name,
then its samples; times are seconds since the epoch, sizes are bytes. Samples carry the
data directory as the label ``pgdata``, so that files of several clusters may lie beside each
other. The verbs use different names, for the same reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Literal, NamedTuple

from wal_e.errors import local_error

_PREFIX = "wale_"


class Metric(NamedTuple):
    """One name without ``wale_``, and its value; None for what is not known, which is then left out."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    value: float | None


class ArchiverState(NamedTuple):
    """What the resident archiver did since it started, and what it sees; times in seconds since the epoch."""

    pushed_files: int
    pushed_bytes: int
    failed_attempts: int
    backlog_files: int
    backlog_oldest_s: float
    last_pushed_at: float | None
    store_away_since: float | None
    dropped_files: int
    pgdata: str = ""


def render(state: ArchiverState) -> str:
    """The metrics of the resident archiver."""
    away = state.store_away_since
    return exposition(
        state.pgdata,
        [
            Metric("archiver_pushed_files_total", "counter", "WAL files stored since the archiver started.", state.pushed_files),
            Metric("archiver_pushed_bytes_total", "counter", "Bytes of WAL files, before compression, stored since the archiver started.", state.pushed_bytes),
            Metric("archiver_failed_attempts_total", "counter", "Attempts to store a WAL file that failed since the archiver started.", state.failed_attempts),
            Metric("archiver_dropped_files_total", "counter", "WAL files given up without being stored, as --drop-after asked.", state.dropped_files),
            Metric("archiver_backlog_files", "gauge", "WAL files that wait to be archived.", state.backlog_files),
            Metric("archiver_backlog_oldest_seconds", "gauge", "How long the longest waiting WAL file waits.", state.backlog_oldest_s),
            Metric("archiver_last_pushed_timestamp_seconds", "gauge", "When a WAL file was last stored.", state.last_pushed_at),
            Metric("archiver_store_available", "gauge", "1 while the store answers, 0 while it is away.", int(away is None)),
            Metric("archiver_store_away_since_timestamp_seconds", "gauge", "Since when the store is away.", away),
        ],
    )


def write(path: str, state: ArchiverState) -> None:
    """Publish the metrics of the resident archiver. Raises: LocalFileError, DiskFull."""
    publish(path, render(state))


def publish(path: str, text: str) -> None:
    """Replace a file by a whole new one, readable for everybody; a reader never sees half of it.

    Raises: LocalFileError, DiskFull.
    """
    temporary = f"{path}.tmp"  # beside it, for the rename; not *.prom, which a collector would read
    try:
        with open(temporary, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text.encode())
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        raise local_error(error, f"writing {path}") from None


def exposition(pgdata: str, metrics: Iterable[Metric]) -> str:
    """Render metrics of one cluster, without the label where its directory is not given; each name once."""
    label = f'{{pgdata="{_escaped(pgdata)}"}}' if pgdata else ""
    lines: list[str] = []
    for metric in metrics:
        if metric.value is not None:
            name = _PREFIX + metric.name
            lines += [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"]
            lines.append(f"{name}{label} {_number(metric.value)}")
    return "".join(f"{line}\n" for line in lines)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # it was never made, or its directory is gone


def _escaped(value: str) -> str:
    text = os.fsencode(value).decode("utf-8", "backslashreplace")
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(round(float(value), 6))
