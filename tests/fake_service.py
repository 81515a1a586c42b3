"""An object service in memory, with faults: ``trouble`` holds errors that the next requests of a kind meet, before or after they take effect."""

from __future__ import annotations

import threading
from collections import defaultdict
from datetime import UTC, datetime

from google_crc32c import value

from wal_e.blobstore.base import Blob, Leftover
from wal_e.blobstore.service import CREATE, Opened, Page, Service, Upload
from wal_e.errors import BlobExists, BlobNotFound, StoreError, StoreUnavailable


class FakeService(Service):
    parts_at_once = 4
    delete_batch = 3
    page_size = 3

    def __init__(self):
        self.objects = {}
        self.uploads = {}
        self.log = []
        self.before = defaultdict(list)
        self.after = defaultdict(list)
        self.cuts = []
        self.lock = threading.Lock()
        self.sending = self.most_sending = 0

    @property
    def url(self):
        return "fake://bucket/prefix"

    def request(self, kind, call):
        self.log.append(kind)
        if self.before[kind]:
            raise self.before[kind].pop(0)
        result = call()
        if self.after[kind]:
            raise self.after[kind].pop(0)
        return result

    def count(self, kind):
        return self.log.count(kind)

    def _set(self, key, data, verb):
        with self.lock:
            if verb == CREATE and key in self.objects:
                raise BlobExists(f"{key} is there")
            self.objects[key] = (data, datetime.now(UTC), str(len(self.log)))

    def write(self, key, data, crc32c, verb):
        assert value(data) == crc32c
        self.request("write", lambda: self._set(key, data, verb))

    def begin(self, key, verb):
        return self.request("begin", lambda: FakeUpload(self, key, verb))

    def open(self, key, start, length, version):
        return self.request("open", lambda: self._open(key, start, length, version))

    def _open(self, key, start, length, version):
        if key not in self.objects:
            raise BlobNotFound(f"no {key}")
        data, _, current = self.objects[key]
        if version not in (None, current):
            raise StoreError(f"{key} was replaced while it was read")
        piece = data[start : None if length is None else start + length]
        return Opened(current, len(data), value(data), self._chunks(piece))

    def _chunks(self, piece):
        cut = self.cuts.pop(0) if self.cuts else None
        for offset in range(0, len(piece), 1 << 20):
            if cut is not None and offset >= cut:
                return
            yield piece[offset : offset + (1 << 20)]

    def stat(self, key):
        return self.request("stat", lambda: self._stat(key))

    def _stat(self, key):
        if key not in self.objects:
            raise BlobNotFound(f"no {key}")
        return Blob(key, len(self.objects[key][0]), self.objects[key][1])

    def page(self, prefix, following):
        def page():
            keys = sorted((key for key in self.objects if key.startswith(prefix) and key > (following or "")), key=str.encode)
            shown = keys[: self.page_size]
            return Page([Blob(key, len(self.objects[key][0]), self.objects[key][1]) for key in shown], shown[-1] if len(keys) > self.page_size else None)

        return self.request("page", page)

    def delete(self, keys):
        assert len(keys) <= self.delete_batch
        failures = {}

        def delete():
            for key in keys:
                if self.before[f"delete {key}"]:
                    failures[key] = self.before[f"delete {key}"].pop(0)
                else:
                    self.objects.pop(key, None)
            return failures

        return self.request("delete", delete)

    def leftovers(self):
        yield from self.request("leftovers", lambda: ())
        for number, upload in self.uploads.items():
            yield Leftover(str(number), f"upload of {upload.key}", None, datetime.now(UTC))

    def discard(self, leftover):
        self.uploads.pop(int(leftover.address), None)


class FakeUpload(Upload):
    def __init__(self, service, key, verb):
        self.service, self.key, self.verb = service, key, verb
        self.parts = {}
        service.uploads[id(self)] = self

    def send(self, part):
        with self.service.lock:
            self.service.sending += 1
            self.service.most_sending = max(self.service.most_sending, self.service.sending)
        try:
            self.service.request("send", lambda: self.parts.update({part.number: part}))
        finally:
            with self.service.lock:
                self.service.sending -= 1

    def complete(self, whole):
        def complete():
            parts = [self.parts[number] for number in range(whole.parts)]
            data = b"".join(part.data for part in parts)
            assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
            assert (len(data), value(data)) == (whole.size, whole.crc32c)
            if id(self) not in self.service.uploads:
                raise StoreUnavailable("no such upload")
            self.service._set(self.key, data, self.verb)
            del self.service.uploads[id(self)]

        try:
            self.service.request("complete", complete)
        except StoreUnavailable:
            self.service.uploads[id(self)] = self
            raise

    def abort(self):
        self.service.request("abort", lambda: self.service.uploads.pop(id(self), None))
