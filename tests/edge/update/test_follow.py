"""A running engine takes an update of its adapters without a restart; answers in the making end as they began."""

import time

import pytest
from build_channel import NAME
from build_gguf import tiny_adapter, tiny_base
from build_server import serving
from slm_edge.edge.engines import open_session
from slm_edge.edge.errors import SlmEdgeError
from slm_edge.edge.pack.pack import Pack
from slm_edge.edge.scheduler.engine import Engine
from slm_edge.edge.store.store import Store
from slm_edge.edge.update.follow import Follower
from slm_edge.edge.update.state import MOST_BAD
from slm_edge.edge.update.update import update


def current():
    return Pack.open(Store().find(NAME)[1])


def alone(pack, prompt="hello"):
    with open_session(pack, threads=1) as session:
        return session.ask(prompt, adapter="a", temperature=0.0, max_tokens=8).text


def test_an_update_without_a_restart(maker):
    maker.release("1.0", rehearsed=True)
    update(NAME, str(maker.site))
    first = current()
    with Engine.open(first, parallel=2, threads=1) as engine, Follower(engine, first, every_s=0.05):
        before = engine.submit("hello", temperature=0.0, max_tokens=8).result()
        # Hundreds of tokens of the old one, while the new one comes
        pieces = iter(engine.submit("hello", temperature=0.0, max_tokens=200))
        long = next(pieces)
        maker.release("1.1", rehearsed=True, seed=2)
        update(NAME)
        second = current()
        digests = [pack.adapters["a"].sha256 for pack in (first, second)]
        assert digests[0] != digests[1]
        deadline_s = time.monotonic() + 60
        while {one.digest for one in engine.facts().adapters} != {digests[1]}:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        after = engine.submit("hello", temperature=0.0, max_tokens=8).result()
        long += "".join(pieces)
    assert before.text == alone(first) and after.text == alone(second)
    assert before.text != after.text
    assert long.startswith(before.text)


def test_what_was_done_by_hand_stays(maker, tmp_path):
    maker.release("1.0", rehearsed=True)
    update(NAME, str(maker.site))
    first = current()
    own = tiny_adapter(tmp_path / "own.gguf", first.base_path(), seed=77)
    with Engine.open(first, parallel=1, threads=1) as engine:
        follower = Follower(engine, first)
        digest = engine.load("a", own)
        maker.release("1.1", rehearsed=True, seed=2)
        update(NAME)
        assert follower.look() and [(one.name, one.digest) for one in engine.facts().adapters] == [("a", digest)]
        engine.unload("a")
        maker.release("1.2", rehearsed=True, seed=3)
        update(NAME)
        assert follower.look() and engine.facts().adapters == ()
        assert engine.submit("hello", max_tokens=2).result().adapter is None


def test_another_base_needs_a_restart(maker, tmp_path, capsys):
    maker.release("1.0", rehearsed=True)
    update(NAME, str(maker.site))
    first = current()
    with Engine.open(first, parallel=1, threads=1) as engine:
        follower = Follower(engine, first)
        assert not follower.look()
        other = tmp_path / "other"
        other.mkdir()

        maker.base = tiny_base(other / "base.gguf", seed=9)
        maker.release("2.0", rehearsed=True)
        update(NAME)
        capsys.readouterr()
        assert not follower.look() and not follower.look()
        assert capsys.readouterr().err.count("another base; restart the server") == 1
        assert engine.submit("hello", max_tokens=2).result().n_tokens == 2


def test_an_adapter_that_the_engine_refuses_is_taken_back(maker):
    """It was damaged on the disk after it was rehearsed."""
    maker.release("1.0", rehearsed=True)
    update(NAME, str(maker.site))
    first = current()
    with Engine.open(first, parallel=1, threads=1) as engine:
        follower = Follower(engine, first)
        maker.release("1.1", rehearsed=True, seed=2)
        update(NAME)
        path = current().adapters["a"].path
        data = bytearray(path.read_bytes())
        data[4] ^= 0xFF
        path.chmod(0o644)
        path.write_bytes(data)
        for _ in range(MOST_BAD):
            with pytest.raises(SlmEdgeError):
                follower.look()
        assert Store().ref(NAME).current == maker.digests["1.0"]
        assert not follower.look()
        assert engine.submit("hello", max_tokens=2).result().n_tokens == 2


def test_a_server_process(maker):
    maker.release("1.0", rehearsed=True)
    update(NAME, str(maker.site))
    with serving(current().folder) as server:

        def digest():
            reply = server.chat(model="a", max_tokens=2)
            assert reply.status == 200
            return reply.headers["x-slm-adapter-digest"]

        old = digest()
        assert current().adapters["a"].sha256 in old
        maker.release("1.1", rehearsed=True, seed=2)
        update(NAME)
        deadline_s = time.monotonic() + 60
        while (now := digest()) == old:
            assert time.monotonic() < deadline_s
            time.sleep(0.2)
        assert current().adapters["a"].sha256 in now
        code, said = server.end()
        assert code == 0 and "the server has its new version" in said
