"""How lanes wait, without processes."""

import os

import gevent
import pytest

from wal_e.pipeline.lanes import Cooperative, native_sleep


class TestOffload:
    def test_returns_what_the_call_returns(self):
        assert Cooperative(1).offload(lambda: 7) == 7

    def test_raises_what_the_call_raises_and_prints_nothing(self, capsys):
        with pytest.raises(LookupError):
            Cooperative(1).offload(lambda: {}["absent"])
        assert capsys.readouterr() == ("", "")

    def test_a_killed_lane_closes_nothing_that_the_call_still_uses(self, capsys):
        waits = Cooperative(1)
        reader, writer = os.pipe()
        events = []

        def call():
            os.write(writer, b"x")
            native_sleep(0.2)
            events.append(os.fstat(writer).st_size)

        def lane():
            try:
                waits.offload(call)
            finally:
                os.close(writer)
                events.append("closed")

        greenlet = gevent.spawn(lane)
        gevent.sleep(0)
        waits.read(reader, 1)
        greenlet.kill()
        os.close(reader)
        assert events == [0, "closed"]
        assert capsys.readouterr() == ("", "")
