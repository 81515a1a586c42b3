from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import socket
import sys
import threading
import time

import pytest
from fault_proxy import FaultProxy
from fault_rules import Answer, Corrupt, Cut, CutEvery, Delay, LoseAnswer, Rule, Slow, Stall, slow_down, too_many_requests, truncate

BIG = bytes(range(256)) * 4096


class _Handler(http.server.BaseHTTPRequestHandler):
    """Keeps what is PUT, and notes what came before it looks at the body."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_PUT(self):
        self.server.seen.append((self.command, self.path, self.headers))
        if "/closes-at-once" in self.path:
            self.close_connection = True
            return self.reply(403, b"no")
        content = b"".join(self.chunks()) if self.headers["Transfer-Encoding"] else self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Length"] in (None, str(len(content))):
            self.server.objects[self.path] = content
        return self.reply(201, b"")

    def chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.server.trailers.append(self.rfile.readline())

    def do_GET(self):
        self.server.seen.append((self.command, self.path, self.headers))
        self.close_connection |= "/leaves-silently" in self.path
        content = self.server.objects.get(self.path.partition("?")[0])
        if content is None:
            self.reply(404, b"absent")
        elif self.path.endswith("?chunked"):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(content), 100_000):
                piece = content[start : start + 100_000]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        elif self.path.endswith("?until-close"):
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content)
        else:
            self.reply(200, content)

    do_HEAD = do_GET

    def do_DELETE(self):
        self.send_response(204)
        self.end_headers()

    def do_POST(self):
        url = f"http://127.0.0.1:{self.server.server_port}/upload?id=1"
        self.reply(200, json.dumps({"mediaLink": url}).encode(), {"Content-Type": "application/json; charset=UTF-8", "Location": url})

    def handle_expect_100(self):
        if "/forbidden" in self.path:
            self.close_connection = True
            self.reply(403, b"no")
            return False
        return "/silent" in self.path or super().handle_expect_100()

    def reply(self, status, content, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


class _Upstream(http.server.ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects = {"/big": BIG}
        self.seen = []
        self.trailers = []

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


@pytest.fixture
def upstream():
    with _Upstream() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(upstream):
    with FaultProxy(upstream.server_port) as proxy:
        yield proxy
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fault-proxy")]


@pytest.fixture
def client(proxy):
    with contextlib.closing(connect(proxy)) as connection:
        yield connection


def connect(proxy):
    return http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)


def connect_raw(proxy):
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=20)


def ask(client, method, path, body=None, headers=()):
    client.request(method, path, body, dict(headers))
    answer = client.getresponse()
    return answer.status, answer.read()


def ask_anew(proxy, method, path, body=None, headers=()):
    with contextlib.closing(connect(proxy)) as client:
        return ask(client, method, path, body, headers)


def received_before_break(client, path):
    """GET, and return what came and how it ended."""
    client.request("GET", path)
    answer = client.getresponse()
    got = b""
    try:
        while piece := answer.read1(65536):
            got += piece
    except (ConnectionResetError, http.client.IncompleteRead) as error:
        return got, type(error)
    return got, None


# What it leaves alone


def test_bodies_pass_unchanged_both_ways_on_one_connection(proxy, client, upstream):
    assert ask(client, "PUT", "/a", BIG) == (201, b"")
    assert ask(client, "GET", "/a") == (200, BIG)
    assert ask(client, "HEAD", "/a") == (200, b"")
    assert ask(client, "DELETE", "/a") == (204, b"")
    assert ask(client, "GET", "/absent") == (404, b"absent")
    assert proxy.connections == 1
    assert [(record.method, record.path, record.status) for record in proxy.log] == [
        ("PUT", "/a", 201),
        ("GET", "/a", 200),
        ("HEAD", "/a", 200),
        ("DELETE", "/a", 204),
        ("GET", "/absent", 404),
    ]
    assert [(record.bytes_in, record.bytes_out) for record in proxy.log] == [(len(BIG), 0), (0, len(BIG)), (0, 0), (0, 0), (0, 6)]
    assert all(record.upstream_status == record.status and not record.faults and not record.broken for record in proxy.log)


def test_chunked_bodies_pass_both_ways(proxy, client, upstream):
    pieces = [BIG[:10], BIG[10:300_000], BIG[300_000:]]
    assert ask(client, "PUT", "/a", iter(pieces)) == (201, b"")
    assert upstream.objects["/a"] == BIG
    assert ask(client, "GET", "/a?chunked") == (200, BIG)
    assert [(record.bytes_in, record.bytes_out) for record in proxy.log] == [(len(BIG), 0), (0, len(BIG))]
    assert proxy.connections == 1


def test_trailers_of_a_chunked_body_pass(proxy, upstream):
    with connect_raw(proxy) as sock:
        sock.sendall(b"PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 201")
    assert upstream.trailers == [b"X-Sum: 1\r\n"]


def test_a_body_may_end_with_its_connection(proxy, client):
    assert ask(client, "GET", "/big?until-close") == (200, BIG)
    assert ask(client, "GET", "/big?until-close") == (200, BIG)
    assert proxy.connections == 2


def test_a_connection_that_the_server_closes_when_idle_is_closed_to_the_client(proxy, client):
    assert ask(client, "GET", "/leaves-silently") == (404, b"absent")
    assert client.sock.recv(1) == b""
    assert ask_anew(proxy, "GET", "/big") == (200, BIG)


def test_a_body_is_passed_on_before_it_is_whole(proxy, upstream):
    with connect_raw(proxy) as sock:
        sock.sendall(b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc")
        wait_for(lambda: upstream.seen)
        sock.sendall(b"def")
        assert sock.recv(100).startswith(b"HTTP/1.1 201")
    assert upstream.objects["/a"] == b"abcdef"


@pytest.mark.parametrize("host", [None, "bucket.example"])
def test_host_is_the_clients_unless_told_otherwise(upstream, host):
    with FaultProxy(upstream.server_port, host=host) as proxy:
        ask_anew(proxy, "GET", "/big")
        [(_, _, headers)] = upstream.seen
        assert headers.get_all("Host") == [host or f"127.0.0.1:{proxy.port}"]


def test_addresses_of_the_upstream_become_the_proxys(proxy, client):
    client.request("POST", "/start")
    answer = client.getresponse()
    assert answer.headers["Location"] == f"{proxy.url}/upload?id=1"
    assert json.loads(answer.read()) == {"mediaLink": f"{proxy.url}/upload?id=1"}


def test_an_expecting_client_sends_its_body_after_100(proxy, upstream):
    with connect_raw(proxy) as sock:
        sock.sendall(b"PUT /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"abc")
        assert sock.recv(100).startswith(b"HTTP/1.1 201")
    assert upstream.objects["/a"] == b"abc"


def test_an_expecting_client_may_lose_patience_with_a_server_that_does_not_know_100(proxy, upstream):
    with connect_raw(proxy) as sock:
        sock.sendall(b"PUT /silent HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        wait_for(lambda: upstream.seen)
        sock.sendall(b"abc")
        assert sock.recv(100).startswith(b"HTTP/1.1 201")
    assert upstream.objects["/silent"] == b"abc"


@pytest.mark.parametrize("refused_by", ["server", "rule"])
def test_an_expecting_client_is_refused_before_its_body(proxy, upstream, refused_by):
    if refused_by == "rule":
        proxy.add(Rule(Answer(403)))
    with connect_raw(proxy) as sock:
        sock.sendall(b"PUT /forbidden HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(1000), b""))
    assert answer.startswith(b"HTTP/1.1 403")
    assert b"Connection: close\r\n" in answer
    assert [(record.status, record.bytes_in) for record in proxy.log] == [(403, 0)]


def test_an_answer_that_comes_before_the_body_was_read_reaches_the_client(proxy, client):
    assert ask(client, "PUT", "/closes-at-once", BIG * 8) == (403, b"no")


def test_an_upstream_that_is_not_there_fails_the_test():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ExceptionGroup, match="the proxy failed") as caught, FaultProxy(port) as proxy, pytest.raises(http.client.RemoteDisconnected):
        ask_anew(proxy, "GET", "/")
    assert "cannot be reached" in str(caught.value.exceptions[0])


def test_a_fault_of_the_proxy_is_a_note_on_the_tests_own_failure(upstream):
    with pytest.raises(AssertionError, match="mine") as caught, FaultProxy(upstream.server_port) as proxy:
        proxy.add(Rule(object()))
        with contextlib.suppress(http.client.RemoteDisconnected):
            ask_anew(proxy, "GET", "/")
        raise AssertionError("mine")
    assert "AttributeError" in caught.value.__notes__[0]


def test_a_client_that_leaves_is_no_fault_of_the_proxy(proxy, client):
    stall = Stall(after=1000)
    proxy.add(Rule(stall))
    client.request("GET", "/big")
    assert client.getresponse().read(1000) == BIG[:1000]
    client.close()
    wait_for(lambda: proxy.log[0].broken)
    assert "left" in proxy.log[0].broken


# What it breaks


@pytest.mark.parametrize("query", ["", "?chunked"])
@pytest.mark.parametrize(("how", "ends"), [("rst", ConnectionResetError), ("fin", http.client.IncompleteRead)])
def test_a_response_is_cut_after_so_many_bytes(proxy, client, how, ends, query):
    cut = Cut(300_001, how=how)
    proxy.add(Rule(cut, limit=1))
    client.request("GET", f"/big{query}")
    answer = client.getresponse()
    with pytest.raises(ends):
        answer.read()
    [record] = proxy.log
    assert (record.bytes_out, record.status, record.faults) == (300_001, 200, [cut])
    client.close()
    assert ask(client, "GET", "/big") == (200, BIG)


def test_a_truncated_response_holds_all_up_to_its_end(proxy, client):
    proxy.add(Rule(truncate(300_001)))
    client.request("GET", "/big")
    with pytest.raises(http.client.IncompleteRead) as caught:
        client.getresponse().read()
    assert caught.value.partial == BIG[:300_001]


def test_a_cut_at_zero_lets_only_the_head_pass(proxy, client):
    proxy.add(Rule(Cut(0)))
    client.request("GET", "/big")
    answer = client.getresponse()
    assert answer.status == 200
    with pytest.raises(ConnectionResetError):
        answer.read()
    assert proxy.log[0].bytes_out == 0


def test_a_cut_beyond_the_body_does_nothing(proxy, client):
    cut = Cut(len(BIG))
    proxy.add(Rule(cut))
    assert ask(client, "GET", "/big") == (200, BIG)
    assert proxy.log[0].faults == []


@pytest.mark.parametrize("body", [BIG, [BIG]], ids=["sized", "chunked"])
def test_a_request_is_cut_after_so_many_bytes_and_never_stored(proxy, client, upstream, body):
    cut = Cut(1000, of="request")
    proxy.add(Rule(cut))
    with pytest.raises(ConnectionError):
        ask(client, "PUT", "/a", body)
    wait_for(lambda: proxy.log[0].end < float("inf"))
    assert "/a" not in upstream.objects
    assert (proxy.log[0].status, proxy.log[0].faults) == (None, [cut])


def test_traffic_is_cut_every_so_many_bytes_of_a_connection(proxy, client):
    cut = CutEvery(2_500_000)
    proxy.add(Rule(cut))
    assert ask(client, "PUT", "/a", BIG) == (201, b"")
    assert ask(client, "GET", "/a") == (200, BIG)
    assert ask_anew(proxy, "GET", "/a") == (200, BIG)
    got, ends = received_before_break(client, "/a")
    assert (len(got), ends) == (2_500_000 - 2 * len(BIG), ConnectionResetError)
    assert [record.faults for record in proxy.log] == [[], [], [], [cut]]


def test_traffic_is_cut_every_so_many_bytes_over_all_connections(proxy):
    cut = CutEvery(1_500_000, how="fin", over_all=True)
    proxy.add(Rule(cut))
    ends = []
    for _ in range(6):
        with contextlib.closing(connect(proxy)) as client:
            ends.append(received_before_break(client, "/big")[1])
    assert [bool(record.faults) for record in proxy.log] == [False, True, False, True, False, True]
    assert sum(record.bytes_out for record in proxy.log) == 4_500_000


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_an_answer_is_lost_after_the_server_did_the_write(proxy, client, upstream, how):
    lose = LoseAnswer(how)
    proxy.add(Rule(lose, method="PUT"))
    with pytest.raises(ConnectionResetError if how == "rst" else http.client.RemoteDisconnected):
        ask(client, "PUT", "/a", BIG)
    assert upstream.objects["/a"] == BIG
    [record] = proxy.log
    assert (record.upstream_status, record.status, record.faults) == (201, None, [lose])


def test_a_request_stalls_until_released(proxy, upstream):
    stall = Stall()
    proxy.add(Rule(stall))
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask_anew(proxy, "PUT", "/a", b"abc")))
    thread.start()
    assert stall.reached.wait(10)
    assert (answers, upstream.seen) == ([], [])
    stall.released.set()
    thread.join()
    assert answers == [(201, b"")]


@pytest.mark.parametrize(("side", "method"), [("request", "PUT"), ("response", "GET")])
def test_a_body_stalls_in_the_middle(proxy, side, method):
    stall = Stall(after=500_000, of=side)
    proxy.add(Rule(stall))
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask_anew(proxy, method, "/big", BIG if method == "PUT" else None)))
    thread.start()
    assert stall.reached.wait(10)
    [record] = proxy.log
    assert record.bytes_out == 500_000 if side == "response" else record.status is None
    stall.released.set()
    thread.join()
    assert [status for status, _ in answers] == [201 if method == "PUT" else 200]


def test_a_stalled_client_is_set_free_when_the_proxy_ends(upstream):
    stall = Stall()
    ends = []

    def ask_in_vain():
        with pytest.raises(http.client.RemoteDisconnected) as caught:
            ask_anew(proxy, "GET", "/big")
        ends.append(caught)

    with FaultProxy(upstream.server_port) as proxy:
        proxy.add(Rule(stall))
        thread = threading.Thread(target=ask_in_vain)
        thread.start()
        assert stall.reached.wait(10)
    thread.join()
    assert ends


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_slow_bodies_take_their_time(proxy, client, method):
    proxy.add(Rule(Slow(4_000_000)))
    ask(client, method, "/big", BIG if method == "PUT" else None)
    [record] = proxy.log
    assert record.end - record.start >= 0.8 * len(BIG) / 4_000_000


def test_a_delay_comes_before_the_request_is_forwarded(proxy, client, upstream):
    proxy.add(Rule(Delay(0.1)))
    ask(client, "GET", "/big")
    [record] = proxy.log
    assert record.end - record.start >= 0.1


def test_answers_of_choice_come_without_the_server_and_keep_the_connection(proxy, client, upstream):
    proxy.add(Rule(slow_down(), method="PUT"), Rule(too_many_requests(7), method="GET"), Rule(Answer(500, b"no"), method="HEAD"))
    status, content = ask(client, "PUT", "/a", BIG)
    assert (status, b"<Code>SlowDown</Code>" in content) == (503, True)
    client.request("GET", "/a")
    answer = client.getresponse()
    assert (answer.status, answer.headers["Retry-After"], answer.read()) == (429, "7", b"")
    assert ask(client, "HEAD", "/a") == (500, b"")
    assert upstream.seen == []
    assert proxy.connections == 1
    assert [(record.status, record.upstream_status, record.bytes_in) for record in proxy.log] == [(503, None, len(BIG)), (429, None, 0), (500, None, 0)]


@pytest.mark.parametrize("at", [0, 1, 300_001, len(BIG) - 1])
@pytest.mark.parametrize("side", ["request", "response"])
def test_one_byte_is_corrupted_and_lengths_are_right(proxy, client, upstream, side, at):
    proxy.add(Rule(Corrupt(at, of=side)))
    ask(client, "PUT", "/a", BIG)
    _, content = ask(client, "GET", "/a")
    assert len(content) == len(BIG)
    assert [offset for offset in range(len(BIG)) if content[offset] != BIG[offset]] == [at]
    assert (upstream.objects["/a"] == BIG) == (side == "response")


def test_connections_are_refused_and_open_ones_cut_until_the_end_of_the_block(proxy, client):
    ask(client, "GET", "/big")
    with proxy.refusing():
        assert client.sock.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            ask_anew(proxy, "GET", "/big")
    assert ask_anew(proxy, "GET", "/big") == (200, BIG)


def test_faults_of_several_rules_add_up(proxy, client):
    corrupt, cut = Corrupt(3), truncate(5)
    proxy.add(Rule(corrupt), Rule(cut))
    client.request("GET", "/big")
    with pytest.raises(http.client.IncompleteRead) as caught:
        client.getresponse().read()
    assert caught.value.partial == bytes([0, 1, 2, 3 ^ 0xFF, 4])
    assert proxy.log[0].faults == [corrupt, cut]


# Which requests it breaks


@pytest.mark.parametrize(
    ("choice", "hit"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"nth": 2}, [2]),
        ({"every": 2}, [2, 4, 6]),
        ({"skip": 3}, [4, 5, 6]),
        ({"skip": 1, "every": 2}, [3, 5]),
        ({"limit": 2}, [1, 2]),
        ({"every": 2, "limit": 1}, [2]),
        ({"probability": 0.0}, []),
        ({"method": "GET|PUT"}, [1, 2, 3, 4, 5, 6]),
        ({"method": "G"}, []),
        ({"path": r"^/x\?n=[35]$"}, [3, 5]),
    ],
)
def test_a_rule_chooses_its_requests(proxy, client, choice, hit):
    rule = Rule(Answer(500), **choice)
    proxy.add(rule)
    assert [number for number in range(1, 7) if ask(client, "GET", f"/x?n={number}")[0] == 500] == hit
    assert rule.applied == len(hit)


def test_chance_is_the_same_for_the_same_seed(proxy, client):
    runs = []
    for seed in (1, 1, 2):
        proxy.clear()
        proxy.add(Rule(Answer(500), probability=0.5, seed=seed))
        runs.append([ask(client, "GET", "/x")[0] for _ in range(40)])
    assert runs[0] == runs[1] != runs[2]
    assert 5 < runs[0].count(500) < 35


# What it tells


def test_overlapping_requests_and_connections_are_counted(proxy):
    for _ in range(2):
        ask_anew(proxy, "GET", "/big")
    assert (proxy.overlap, proxy.connections, proxy.peak_connections) == (1, 2, 1)
    stall = Stall()
    proxy.add(Rule(stall))
    threads = [threading.Thread(target=ask_anew, args=(proxy, "GET", "/big")) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(proxy.log) == 5)
    assert (proxy.overlap, proxy.peak_connections) == (3, 3)
    stall.released.set()
    for thread in threads:
        thread.join()
    assert (proxy.overlap, proxy.connections) == (3, 5)


def test_clear_forgets_rules_and_log(proxy, client):
    proxy.add(Rule(Answer(500)))
    ask(client, "GET", "/big")
    proxy.clear()
    assert proxy.log == []
    assert ask(client, "GET", "/big") == (200, BIG)


def wait_for(happened):
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)
