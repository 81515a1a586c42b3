"""One node of OpenStack Swift: ``swift_node.py DIRECTORY PROXY ACCOUNT CONTAINER OBJECT MAX_FILE_SIZE``, four ports and a size in bytes.

Run by swift.py with the Python of the environment that Swift is installed in. Four processes of the real thing, without what an
installation needs besides: /etc/swift (the configuration is here), memcached (a dictionary in the proxy plays it), a mounted
device, root. Replicators, auditors and the expirer are not run: one copy of everything, and nothing is lost here.
"""

import ctypes
import getpass
import os
import signal
import sys
import time
from pathlib import Path

import swift.common.utils as swift_utils

_TYPES = ("account", "container", "object")
_SWIFT = """[swift-hash]
swift_hash_path_suffix = tests
[storage-policy:0]
name = only
default = yes
[swift-constraints]
max_file_size = {max_file_size}
"""
_COMMON = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {directory}
devices = {directory}/devices
recon_cache_path = {directory}
mount_check = false
disable_fallocate = true
log_level = WARNING
[pipeline:main]
pipeline = {pipeline}
[app:{name}-server]
use = egg:swift#{name}
{options}"""
_FILTERS = ("catch_errors", "gatekeeper", "healthcheck", "cache", "listing_formats", "bulk", "tempauth", "copy", "slo", "dlo")
_PROXY_OPTIONS = """account_autocreate = true
allow_account_management = true
[filter:cache]
paste.filter_factory = swift_node:cache_factory
[filter:tempauth]
use = egg:swift#tempauth
storage_url_scheme = default
user_test_tester = testing .admin
user_test_reader = reading
"""
_PLAIN_FILTERS = "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in _FILTERS if name not in ("cache", "tempauth"))


class _Cache:
    """What Swift asks of memcached, as far as a proxy alone needs it; times are relative seconds, 0 for ever."""

    def __init__(self):
        self._values = {}

    def get(self, key, **_):
        value, end = self._values.get(key, (None, 0))
        return value if end == 0 or end > time.time() else None

    def set(self, key, value, time=0, **_):
        self._values[key] = (value, _end(time))

    def delete(self, key, **_):
        self._values.pop(key, None)

    def incr(self, key, delta=1, time=0):
        value = max((self.get(key) or 0) + int(delta), 0)
        self.set(key, value, time=time)
        return value

    def decr(self, key, delta=1, time=0):
        return self.incr(key, -int(delta), time)


def _end(seconds):
    return time.time() + seconds if seconds else 0


def cache_factory(_settings, **_options):
    cache = _Cache()

    def wrap(application):
        def call(environ, start_response):
            environ["swift.cache"] = cache
            return application(environ, start_response)

        return call

    return wrap


def main():
    directory = Path(sys.argv[1])
    port, *storage_ports = map(int, sys.argv[2:6])
    sys.modules["swift_node"] = sys.modules["__main__"]  # where the proxy looks for cache_factory
    configure(directory, port, dict(zip(_TYPES, storage_ports, strict=True)), int(sys.argv[6]))
    children = [start(directory, name) for name in (*_TYPES, "proxy")]
    signal.signal(signal.SIGTERM, lambda *_: end(children))
    gone, _ = os.wait()
    end([child for child in children if child != gone])


def configure(directory, port, storage_ports, max_file_size):
    from swift.common.ring import RingBuilder

    (directory / "devices/d1").mkdir(parents=True)
    common = {"directory": directory, "user": getpass.getuser()}
    for name, storage_port in storage_ports.items():
        builder = RingBuilder(4, 1, 0)  # 16 partitions of one copy
        builder.add_dev({"id": 0, "region": 1, "zone": 1, "ip": "127.0.0.1", "port": storage_port, "device": "d1", "weight": 1})
        builder.rebalance()
        builder.get_ring().save(str(directory / f"{name}.ring.gz"))
        (directory / f"{name}.conf").write_text(_COMMON.format(name=name, port=storage_port, pipeline=f"{name}-server", options="", **common))
    pipeline = " ".join([*_FILTERS, "proxy-server"])
    (directory / "proxy.conf").write_text(_COMMON.format(name="proxy", port=port, pipeline=pipeline, options=_PROXY_OPTIONS + _PLAIN_FILTERS, **common))
    (directory / "swift.conf").write_text(_SWIFT.format(max_file_size=max_file_size))
    swift_utils.SWIFT_CONF_FILE = str(directory / "swift.conf")
    swift_utils.validate_configuration()


def start(directory, name):
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
    from swift.common.wsgi import run_wsgi

    os._exit(run_wsgi(str(directory / f"{name}.conf"), f"{name}-server", log_to_console=True))


def end(children):
    for child in children:
        os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)
    os._exit(0)


if __name__ == "__main__":
    main()
