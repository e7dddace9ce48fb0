"""An update that is killed at any step that changes the disk: the old version runs or the new one, and never neither.

Every rename, link and fsync of an update is one such step; the process is killed right before it, and right after.
The suite takes some of them: SLM_EDGE_KILLS=200 takes all.
"""

import os
import shutil
import signal
from pathlib import Path

from build_channel import NAME, tried
from slm_edge.edge.files.cache import state_folder, store_folder
from slm_edge.edge.pack.pack import Pack, verify_folder
from slm_edge.edge.store.store import Store
from slm_edge.edge.update.state import read_state, settle
from slm_edge.edge.update.update import rollback, update

MOST = int(os.environ.get("SLM_EDGE_KILLS", "7"))
STEPS = ("replace", "rename", "link", "fsync")


def in_a_child(work, kill_at=None, after=False):
    """Runs `work` in a fork, killed at a step; gives how many steps it made, None if it was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        n_steps = 0

        def counted(real):
            def step(*given, **named):
                nonlocal n_steps
                n_steps += 1
                if n_steps == kill_at and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = real(*given, **named)
                if n_steps == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return step

        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        code = 1
        try:
            work()
            os.write(writer, str(n_steps).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the child ended with {status}"
    return int(said) if status == 0 else None


class Disk:
    """What this machine has on its disk, to be put back before each kill."""

    def __init__(self, folder):
        self._kept = {place: folder / str(n) for n, place in enumerate((store_folder(), state_folder()))}
        for place, kept in self._kept.items():
            self._copy(place, kept)

    def put_back(self):
        for place, kept in self._kept.items():
            shutil.rmtree(place, ignore_errors=True)
            self._copy(kept, place)

    @staticmethod
    def _copy(source, dest):
        if source.is_dir():
            shutil.copytree(source, dest)


def kills(disk, work):
    """Kills `work` at its steps; yields after each kill."""
    n_steps = in_a_child(work)
    assert n_steps > 4
    chosen = sorted({round(1 + at * (n_steps - 1) / (MOST - 1)) for at in range(MOST)})
    for kill_at in chosen if n_steps > MOST else range(1, n_steps + 1):
        for after in (False, True):
            disk.put_back()
            assert in_a_child(work, kill_at, after) is None
            yield kill_at


def current_digest():
    """What runs, every byte of it right; None for nothing."""
    found = Store().find(NAME)
    if found is None:
        return None
    verify_folder(found[1])
    Pack.open(found[1])
    return found[0].digest


def left_aside():
    return [path for place in (store_folder(), state_folder()) for path in Path(place).rglob("*.aside")]


def test_updates(maker, tmp_path):
    maker.release("1.0", rehearsed=True)
    update(NAME, str(maker.site))
    maker.release("1.1", seed=2)
    old, new = maker.digests["1.0"], maker.digests["1.1"]
    tried(old, new)
    seen = set()
    for _ in kills(Disk(tmp_path / "disk"), lambda: update(NAME)):
        now = current_digest()
        assert now in (old, new)
        seen.add(now)
        assert update(NAME).version == "1.1"
        assert current_digest() == new
        # And the one before is whole, and may be gone back to.
        rollback(NAME)
        assert current_digest() == old
    assert seen == {old, new}


def test_the_first_install(maker, tmp_path):
    maker.release("1.0", rehearsed=True)
    for _ in kills(Disk(tmp_path / "disk"), lambda: update(NAME, str(maker.site))):
        assert current_digest() in (None, maker.digests["1.0"])
        assert update(NAME, str(maker.site)).version == "1.0"
        assert current_digest() == maker.digests["1.0"]


def test_going_back(maker, tmp_path):
    for number in ("1.0", "1.1"):
        maker.release(number, rehearsed=True)
        update(NAME, str(maker.site))
    old, new = maker.digests["1.0"], maker.digests["1.1"]
    for _ in kills(Disk(tmp_path / "disk"), lambda: rollback(NAME)):
        assert current_digest() in (old, new)
        settle(Store(), NAME)
        # Once it is noted that the new one is left, the old one comes.
        if new in read_state(Store(), NAME).refused:
            assert current_digest() == old
