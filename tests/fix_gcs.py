"""Google Cloud Storage for tests: one emulator for the session, a fresh bucket for each store."""

import atexit
import contextlib
import itertools
import json
import tempfile
import urllib.request
from functools import cache
from pathlib import Path

from servers import gcs

from wal_e.blobstore.registry import open_store
from wal_e.settings import Settings

_until_exit = contextlib.ExitStack()
_numbers = itertools.count()


@cache
def gcs_server():
    directory = _until_exit.enter_context(tempfile.TemporaryDirectory())
    endpoint = _until_exit.enter_context(gcs.running(Path(directory)))
    atexit.register(_until_exit.close)
    return endpoint


def new_bucket():
    name = f"bucket-{next(_numbers)}"
    body = json.dumps({"name": name}).encode()
    url = f"{gcs_server().url}/storage/v1/b?project={gcs_server().project}"
    urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})).close()
    return name


def gcs_store(tmp_path, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server().url)
    return open_store(Settings({"WALE_GS_PREFIX": f"gs://{new_bucket()}/some/prefix"}))
