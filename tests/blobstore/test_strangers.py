"""Something else answers in the place of a store, as a proxy does with a page for people: that is neither an empty store nor a success."""

import os

import fix_s3
import pytest
from fault_proxy import FaultProxy
from fault_rules import Answer, Rule
from fix_network import NETWORKS

from wal_e.blobstore.registry import open_store
from wal_e.errors import BlobExists, BlobNotFound, StoreError
from wal_e.settings import Settings

ATTEMPTS = {
    "list": lambda store: list(store.list()),
    "stat": lambda store: store.stat("some/key"),
    "get": lambda store: b"".join(store.get("some/key")),
    "put": lambda store: store.put("some/key", [b"content"]),
    "create": lambda store: store.create("some/key", [b"content"]),
    "leftovers": lambda store: list(store.leftovers()),
}


@pytest.mark.parametrize("verb", ATTEMPTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_page_for_people_is_no_answer_of_a_store(name, verb, monkeypatch, tmp_path):
    if (name, verb) == ("gcs", "leftovers"):
        pytest.skip("Google is not asked for any")
    fix_s3.without_aws(monkeypatch, tmp_path)
    network = NETWORKS[name]()
    with FaultProxy(network.port) as proxy:
        for variable, value in network.environ_at(proxy.port).items():
            monkeypatch.setenv(variable, value)
        proxy.add(Rule(Answer(200, b"<html><h1>Welcome</h1></html>", {"Content-Type": "text/html"})))
        store = open_store(Settings({**os.environ, "WALE_RETRIES": "1"}))
        with pytest.raises(StoreError) as raised:
            ATTEMPTS[verb](store)
    assert not isinstance(raised.value, (BlobNotFound, BlobExists))
