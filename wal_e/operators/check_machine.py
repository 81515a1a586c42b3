"""``check`` on this machine: the program, its settings, the tools, and bytes through them and back."""

from __future__ import annotations

import os
import platform
from io import RawIOBase

from wal_e import __version__
from wal_e.errors import CodecFailed, ConfigurationError, DamageError
from wal_e.operators.check_subject import Seen, Subject, ok, skip, warn
from wal_e.pipeline import process
from wal_e.pipeline.pipeline import Pipeline
from wal_e.postgres.page import require_numpy
from wal_e.settings import TABLE, VENDOR_TABLE

CONTENT_BYTES = 64 * 1024  # of noise, and as many zeros: what shrinks and what does not
VERSION_BYTES = 4096


def version(_: Subject) -> Seen:
    """Which program on which Python."""
    return ok(f"{__version__} with Python {platform.python_version()} on {platform.system()} {platform.release()}")


def settings(subject: Subject) -> Seen:
    """Every setting can be read, and every variable that looks like one is one. Raises: ConfigurationError."""
    for row in (*TABLE, *VENDOR_TABLE):
        getattr(subject.settings, row.field)
    unknown = subject.settings.unknown_variables()
    if unknown:
        return warn(f"{', '.join(unknown)} {'is not a setting' if len(unknown) == 1 else 'are not settings'}", "Unset it, or correct its name.")
    return ok("all can be read, none is unknown")


def lzop(subject: Subject) -> Seen:
    """The codec's program is there. Raises: ToolMissing, CodecFailed."""
    return ok(_said_version(subject, "lzop"))


def numpy(_: Subject) -> Seen:
    """What computes page checksums is there."""
    try:
        require_numpy()
    except ConfigurationError as error:
        return warn("not installed: backup-verify and backup-push --verify-page-checksums cannot look at page checksums", error.hint)
    return ok("installed, page checksums can be looked at")


def gpg(subject: Subject) -> Seen:
    """The cipher's program is there, if it is needed. Raises: ToolMissing, CodecFailed."""
    if not subject.settings.gpg_key_id:
        return skip("no encryption was asked for (WALE_GPG_KEY_ID)")
    return ok(f"{_said_version(subject, 'gpg')}, for the key {subject.settings.gpg_key_id}")


def codec(subject: Subject) -> Seen:
    """Bytes go through codec and cipher and come back. Raises: ConfigurationError, CodecFailed, DamageError."""
    pipeline = Pipeline(subject.waits, subject.settings.gpg_key_id)
    content = os.urandom(CONTENT_BYTES) + bytes(CONTENT_BYTES)
    coded = list(pipeline.encode(lambda stream: _write(stream, content)))
    through = "lzop and gpg" if subject.settings.gpg_key_id else "lzop"
    try:
        decoded = _decoded(pipeline, coded)
    except (ConfigurationError, DamageError) as error:
        if not subject.settings.gpg_key_id:
            raise
        return warn(
            f"what is encrypted here cannot be decrypted here: {error.detail or error.message}",
            "Right for a server that only pushes. Where something is fetched, a standby included, the secret key must be there, without a passphrase.",
        )
    if decoded != content:
        raise DamageError(f"what went through {through} came back changed", "", "Install the package of the tool again, and test this machine's memory.")
    return ok(f"{len(content)} bytes went through {through} and came back")


def _said_version(subject: Subject, name: str) -> str:
    """The first line of what a program says of its version."""
    said = os.memfd_create(name)
    silence = os.open(os.devnull, os.O_RDONLY)
    try:
        started = process.start((name, "--version"), silence, said)
        subject.waits.watch(started)
        status = subject.waits.reap(started)
        words = process.stderr_text(started)
        os.close(started.stderr)
        if status != 0:
            raise CodecFailed(f"{name} --version ended with status {status}", words, f"Install {name} again.")
        return os.pread(said, VERSION_BYTES, 0).decode(errors="replace").partition("\n")[0].strip() or words
    finally:
        os.close(silence)
        os.close(said)


def _write(stream: RawIOBase, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[stream.write(view) or 0 :]


def _decoded(pipeline: Pipeline, coded: list[bytes]) -> bytes:
    found = bytearray()

    def consume(stream: RawIOBase) -> None:
        while data := stream.read(CONTENT_BYTES):
            found.extend(data)

    pipeline.decode(coded, f"probe{pipeline.suffix}", consume)
    return bytes(found)
