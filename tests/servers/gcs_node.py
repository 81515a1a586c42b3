"""Google Cloud Storage's JSON API in memory, on a port: ``gcs_node.py PORT``.

Run by gcs.py with the Python of the environment that gcp-storage-emulator is installed in. The emulator's routes, resources, uploads,
checksums and batches, and around them what it lacks of the service: many connections kept alive, conditions on generations, pages of
listings, all forms of ranges, keys exactly as given, bodies cut short that count for nothing, sessions that can be cancelled and asked
after their end, errors with their reasons, and access by token: ``reader`` may only read, ``writer`` may not list or delete,
``nobody`` may do nothing, ``expired`` is not a token any more.

``GET /uploads`` gives the names whose upload was begun and neither finished nor cancelled, which the service itself never tells.
"""

import http.server
import io
import json
import logging
import re
import sys
import threading
from functools import partial
from http import HTTPStatus
from urllib.parse import parse_qs, quote, unquote, urlsplit

from gcp_storage_emulator import server, storage
from gcp_storage_emulator.handlers import objects

_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o(?:/(.+))?")
_FORBIDDEN = {
    "reader": lambda method, key: method != "GET",
    "writer": lambda method, key: method == "DELETE" or (method == "GET" and key is None),
    "nobody": lambda method, key: True,
}


class Refusal(Exception):
    def __init__(self, status, reason, message):
        self.status, self.reason, self.message = status, reason, message


class Storage(storage.Storage):
    """Contents by exact key, where the emulator makes paths of them; uploads that append, where it rewrites."""

    def __init__(self):
        super().__init__(use_memory_fs=True)
        self.lock = threading.RLock()
        self.contents = {}
        self.parts = {}  # upload id: bytes so far
        self.finished = {}  # upload id: the object it became

    def _write_config_to_file(self):
        pass

    def _bucket_soft_delete_retention_seconds(self, bucket):
        return 0

    def create_file(self, bucket, key, content, resource, upload_id=None):
        if bucket not in self.buckets:
            raise storage.NotFound
        resource["mediaLink"] = resource["mediaLink"].replace(f"/o/{key}?", f"/o/{quote(key, safe='')}?")
        self.contents[bucket, key] = content
        self.objects.setdefault(bucket, {})[key] = resource
        if upload_id:
            self.finished[upload_id] = resource
            self.forget_upload(upload_id)

    def forget_upload(self, upload_id):
        self.resumable.pop(upload_id, None)
        self.parts.pop(upload_id, None)

    def get_file(self, bucket, key, show_error=True):
        self.get_file_obj(bucket, key)
        return self.contents[bucket, key]

    def _delete_file(self, bucket, key):
        self.contents.pop((bucket, key), None)

    def get_resumable_byte_count(self, upload_id):
        return len(self.parts.get(upload_id, b""))

    def add_to_resumable_upload(self, upload_id, content, total_size=None, expected_start=None):
        parts = self.parts.setdefault(upload_id, bytearray())
        if expected_start not in (None, len(parts)):
            raise storage.BadRequest(f"the upload has {len(parts)} bytes, and these start at {expected_start}")
        parts += content
        return bytes(parts) if total_size is not None and len(parts) >= total_size else None


class Response(server.Response):
    def json(self, value):
        if self._handler.next_page:
            value["nextPageToken"] = self._handler.next_page
        super().json(value)

    def close(self):
        handler = self._handler
        if self.status == HTTPStatus.NOT_FOUND and not self._content:
            handler.say_not_found(self)
        elif handler.resource and handler.command == "GET":
            self["X-Goog-Generation"] = handler.resource["generation"]
            self["X-Goog-Storage-Class"] = handler.resource["storageClass"]
            self["X-Goog-Hash"] = f"crc32c={handler.resource['crc32c']},md5={handler.resource['md5Hash']}"
            self["ETag"] = handler.resource["etag"]
        super().close()


class Handler(server.RequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self):
        body = self.read_body()
        if body is None:
            self.close_connection = True
            return
        connection = self.rfile, self.wfile
        self.rfile, self.wfile = io.BytesIO(body), io.BytesIO()
        try:
            with self.storage.lock:  # and not while the client takes its time to read
                self.answer()
            answer = self.wfile.getbuffer()
        finally:
            self.rfile, self.wfile = connection
        self.wfile.write(answer)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def read_body(self):
        """The whole body; None when the client went away meanwhile."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline() or b"0", 16):
                body += self.rfile.read(size)
                if self.rfile.readline() != b"\r\n":
                    return None
            if self.rfile.readline() != b"\r\n":
                return None
            del self.headers["Transfer-Encoding"]
            self.headers["Content-Length"] = str(len(body))
            return body
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size)
        return body if len(body) == size else None

    def answer(self):
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        found = _OBJECT.fullmatch(url.path.removeprefix("/upload"))
        self.bucket, self.key = (unquote(part) if part else None for part in found.groups()) if found else (None, None)
        self.resource = self.storage.objects.get(self.bucket, {}).get(self.key)
        self.next_page = None
        try:
            self.check_access()
            if url.path == "/uploads":
                self.say(HTTPStatus.OK, sorted(upload["name"] for upload in self.storage.resumable.values()))
            elif not (self.is_upload() and self.answer_for_session()):
                self.check_conditions()
                self.correct_range()
                server.Router(self).handle(self.command)
        except Refusal as refusal:
            self.say(refusal.status, error(refusal))

    def check_access(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token == "expired":
            raise Refusal(HTTPStatus.UNAUTHORIZED, "authError", "Invalid Credentials")
        if _FORBIDDEN.get(token, lambda *_: False)(self.command, self.key):
            raise Refusal(HTTPStatus.FORBIDDEN, "forbidden", f"{token} does not have access to the Google Cloud Storage object.")

    def is_upload(self):
        return self.path.startswith("/upload/")

    def answer_for_session(self):
        """Answer what concerns an upload that is cancelled, unknown or was finished before; false for everything else."""
        upload_id = self.query.get("upload_id")
        if upload_id in self.storage.finished:
            self.say(HTTPStatus.OK, self.storage.finished[upload_id])
        elif upload_id in self.storage.resumable and self.command == "DELETE":
            self.storage.forget_upload(upload_id)
            self.say(499, {})
        elif upload_id and self.command == "DELETE":
            raise Refusal(HTTPStatus.NOT_FOUND, "notFound", "No such upload session")
        else:
            return False
        return True

    def check_conditions(self):
        key, upload_id = self.key, self.query.get("upload_id")
        if upload_id and self.headers.get("Content-Range", "").endswith("/*"):
            return  # the service looks when an upload begins and when it ends
        if self.is_upload():
            key = self.query.get("name") or self.uploaded_name()
            self.check_sum()
        resource = self.storage.objects.get(self.bucket, {}).get(key)
        generation = resource["generation"] if resource else "0"
        if self.query.get("generation", generation) != generation:
            raise Refusal(HTTPStatus.NOT_FOUND, "notFound", f"No such object: {self.bucket}/{key}")
        if self.query.get("ifGenerationMatch", generation) != generation:
            self.storage.forget_upload(upload_id)
            raise Refusal(HTTPStatus.PRECONDITION_FAILED, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")

    def uploaded_name(self):
        upload = self.storage.resumable.get(self.query.get("upload_id"))
        if upload:
            return upload["name"]
        data = read_data(self, parse_qs(urlsplit(self.path).query))
        self.rfile.seek(0)
        return data.get("meta", data).get("name") if isinstance(data, dict) else None

    def check_sum(self):
        """Let the emulator compare with the checksum that comes with an upload's last bytes."""
        upload = self.storage.resumable.get(self.query.get("upload_id"))
        given = re.search(r"crc32c=([^,\s]+)", self.headers.get("X-Goog-Hash", ""))
        if upload and given:
            upload["crc32c"] = given[1]

    def correct_range(self):
        given = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not given or not self.resource:
            return
        size = int(self.resource["size"])
        start = int(given[1]) if given[1] else max(size - int(given[2]), 0)
        if start >= size:
            raise Refusal(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "requestedRangeNotSatisfiable", "Request range not satisfiable")
        self.headers.replace_header("Range", f"bytes={start}-{given[2] if given[1] else ''}")

    def say(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(int(status), getattr(status, "phrase", "Client Closed Request"))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def say_not_found(self, response):
        there = self.bucket is None or self.bucket in self.storage.buckets
        message = f"No such object: {self.bucket}/{self.key}" if there else "The specified bucket does not exist."
        response.json(error(Refusal(HTTPStatus.NOT_FOUND, "notFound", message)))


class Httpd(http.server.ThreadingHTTPServer):
    request_queue_size = 256


def error(refusal):
    return {"error": {"code": int(refusal.status), "message": refusal.message, "errors": [{"domain": "global", "reason": refusal.reason}]}}


def list_a_page(request, response, store, *_):
    """Cut the emulator's whole listing to the page that was asked for."""
    handler = request._request_handler
    query = handler.query
    try:
        found, prefixes = store.get_file_list(handler.bucket, query.get("prefix"), query.get("delimiter"), query.get("matchGlob"))
    except storage.NotFound:
        response.status = HTTPStatus.NOT_FOUND
        return
    after, start, end = query.get("pageToken", ""), query.get("startOffset", ""), query.get("endOffset")
    found = [each for each in found if each["name"] > after and each["name"] >= start and (end is None or each["name"] < end)]
    size = min(int(query.get("maxResults", 1000)), 1000)
    if len(found) > size:
        handler.next_page = found[size - 1]["name"]
    response.json({"kind": "storage#objects", "prefixes": prefixes, "items": found[:size]})


def read_data(handler, query, read_otherwise=server._read_data):
    """Take uploads as bytes: the emulator's parser is one for mail, and stumbles over an empty object."""
    if query.get("uploadType") == ["media"]:
        return handler.rfile.read()
    content_type = handler.headers.get("Content-Type", "")
    if not content_type.startswith("multipart/related"):
        return read_otherwise(handler, query)
    boundary = b"--" + re.search(r'boundary="?([^";]+)', content_type)[1].encode()
    body = handler.rfile.read()
    _, meta, rest = body.split(boundary, 2)
    head, content = rest[: rest.rindex(b"\r\n" + boundary)].split(b"\r\n\r\n", 1)
    kind = re.search(rb"content-type:\s*([^\r\n;]+)", head, re.IGNORECASE)
    return {"meta": json.loads(meta.split(b"\r\n\r\n", 1)[1]), "content": content, "content-type": kind[1].decode()}


def say_incomplete(response, store, upload_id, fallback_end=0):
    response.status = objects.GoogleHTTPStatus.RESUME_INCOMPLETE
    received = store.get_resumable_byte_count(upload_id)
    if received:
        response["Range"] = f"bytes=0-{received - 1}"


def main():
    logging.getLogger(server.__name__).setLevel(logging.CRITICAL)  # each health check is a warning of it
    server.Response = Response
    server._read_data = read_data
    server.HANDLERS = tuple((path, {method: list_a_page if act is objects.ls else act for method, act in acts.items()}) for path, acts in server.HANDLERS)
    objects._resumable_incomplete = say_incomplete
    Httpd(("127.0.0.1", int(sys.argv[1])), partial(Handler, Storage())).serve_forever()


if __name__ == "__main__":
    main()
