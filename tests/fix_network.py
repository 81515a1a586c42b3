"""Places in network stores, for runs of wal-e: the variables that name one, and what the service holds there.

``NETWORKS`` has a function for each kind of store that makes a new place in it.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from typing import NamedTuple

import fix_s3
from fix_azure import azure_container, azure_server
from fix_gcs import gcs_server, new_bucket
from fix_swift import owner, swift_container, swift_server
from servers import versity
from swiftclient import client as swift_client


class Network(NamedTuple):
    """A place in a store: the port of its server, the variables for wal-e with that port or with another, and what is there.

    ``objects`` are the names of all objects; ``unfinished`` counts what is there of uploads in parts that were not ended.
    """

    name: str
    port: int
    environ_at: Callable[[int], dict[str, str]]
    objects: Callable[[], list[str]]
    unfinished: Callable[[], int]

    @property
    def environ(self) -> dict[str, str]:
        return self.environ_at(self.port)


def s3() -> Network:
    server, bucket, client = fix_s3.server(versity), fix_s3.new_bucket(versity), fix_s3.admin(versity)

    def environ(port: int) -> dict[str, str]:
        place = {"WALE_S3_PREFIX": f"s3://{bucket}/pg/main", "WALE_S3_ENDPOINT": f"http+path://127.0.0.1:{port}"}
        keys = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
        return {**place, **keys, "AWS_REGION": server.region, "AWS_EC2_METADATA_DISABLED": "true"}

    def objects() -> list[str]:
        return [found["Key"] for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket) for found in page.get("Contents", [])]

    return Network("s3", server.port, environ, objects, lambda: len(client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])))


def gcs() -> Network:
    server, bucket = gcs_server(), new_bucket()

    def environ(port: int) -> dict[str, str]:
        return {"WALE_GS_PREFIX": f"gs://{bucket}/pg/main", "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}

    def objects() -> list[str]:
        with urllib.request.urlopen(f"{server.url}/storage/v1/b/{bucket}/o") as answer:
            page = json.load(answer)
        assert "nextPageToken" not in page
        return [found["name"] for found in page.get("items", [])]

    return Network("gcs", server.port, environ, objects, lambda: 0)  # a session that is not ended vanishes by itself, and costs nothing


def azure() -> Network:
    container = azure_container()
    server = azure_server()

    def environ(port: int) -> dict[str, str]:
        connection = server.connection_string.replace(f":{server.port}/", f":{port}/")
        return {"WALE_WABS_PREFIX": f"wabs://{container.container_name}/pg/main", "AZURE_STORAGE_CONNECTION_STRING": connection}

    def objects() -> list[str]:
        return list(container.list_blob_names())

    def unfinished() -> int:
        return sum(1 for _ in container.list_blobs(include=["uncommittedblobs"])) - len(objects())

    return Network("azure", server.port, environ, objects, unfinished)


def swift() -> Network:
    server, container = swift_server(), swift_container()

    def environ(port: int) -> dict[str, str]:
        auth_url = server.auth_url.replace(f":{server.port}/", f":{port}/")
        user = {"SWIFT_USER": server.user, "SWIFT_PASSWORD": server.key, "SWIFT_AUTH_VERSION": "1"}
        return {"WALE_SWIFT_PREFIX": f"swift://{container}/pg/main", "SWIFT_AUTHURL": auth_url, **user}

    def names() -> list[str]:
        return [found["name"] for found in swift_client.get_container(*owner(), container, full_listing=True)[1]]

    def objects() -> list[str]:
        return [name for name in names() if "/.segments/" not in name]

    def unfinished() -> int:
        return len(names()) - len(objects()) - sum(_segments(container, name) for name in objects())

    return Network("swift", server.port, environ, objects, unfinished)


def _segments(container: str, name: str) -> int:
    headers, body = swift_client.get_object(*owner(), container, name, query_string="multipart-manifest=get")
    return len(json.loads(body)) if headers.get("x-static-large-object") else 0


NETWORKS = {"s3": s3, "gcs": gcs, "azure": azure, "swift": swift}
