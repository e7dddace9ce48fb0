"""A fleet that updates itself: devices with stores of their own, one static server, and processes killed at random.

    python -m slm_edge.benchmarks.delivery.fleet --devices 20 --kills 200

A good release goes to 25, 50 and 100 % of the devices. One whose golden prompts fail goes to half of them, is used by
none, and is withdrawn. One that kills the process that uses it goes to all, and each goes back by itself after three
such uses. The last good one reaches all. In each phase updates and uses are killed by SIGKILL at random moments, and
after each kill the device must have one whole version, every byte of it checked. Prints one JSON document; exits with 1
where a promise is broken. `longest_back_s` is as long as this machine needs to run all devices so often.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from ...devices.catalogue.shapes import ModelShape
from ...edge.gguf.base import BaseInfo
from ...edge.pack.card import TaskCard
from ...edge.pack.pack import Pack, verify_folder
from ...edge.pack.sign import sign_pack
from ...edge.pack.write import NewAdapter, build_pack
from ...edge.store.store import Store
from ...edge.trust.gate import MINISIG_FILE
from ...edge.trust.keys import trust_key
from ...edge.trust.secret_key import SecretKey
from ...edge.update.machine import machine_id
from ...edge.update.publish import change, publish
from ...edge.update.state import read_state
from ...edge.update.update import update
from ...edge.update.watch import watched
from ..made.random_adapter import write_random_adapter
from ..made.random_base import make_shape

NAME: Final = "fleet"
DEADLY: Final = "dies in use"
PASSPHRASE: Final = "proof"
PROMPT: Final = "hello"
SHAPE: Final = ModelShape("tiny", "llama", 2, 64, 2, 2, 128, 512, n_ctx_train_tokens=256, tied=False)
AT_ONCE: Final = 3
MOST_ROUNDS: Final = 12
SERVER: Final = """
import functools, http.server, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, form, *values):
        print(self.path, file=log, flush=True)
class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client):
        "A client that was killed is no fault of the server."
log = open(sys.argv[2], "a")
server = Server(("127.0.0.1", 0), functools.partial(Handler, directory=sys.argv[1]))
print(server.server_port, flush=True)
server.serve_forever()
"""


def in_a_child(work: Callable[[], object]) -> int:
    """Starts a fork that does `work` and ends; its process id. This process itself never uses llama.cpp."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - the child's last words
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(1)


@dataclass
class Device:
    """One device: a home with store, state and id.

    Attributes:
        back_s: the longest time from being seen at a release until it was left again by itself.
    """

    home: Path
    seen: str | None = None
    since_s: float = 0.0
    back_s: float = 0.0
    left: list[str] = field(default_factory=list)

    def enter(self) -> None:
        """This process is the device from now on."""
        os.environ["SLM_EDGE_HOME"] = str(self.home)
        os.environ.pop("SLM_EDGE_CACHE", None)

    def tick(self, url: str) -> None:
        """What the timer does, and then somebody: an update, and an answer."""
        self.enter()
        self.home.mkdir(exist_ok=True)
        os.dup2(os.open(self.home / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        update(NAME, url)
        found = Store().find(NAME)
        if found is None:
            return
        from ...edge.engines import open_session

        pack = Pack.open(found[1])
        with watched(pack), open_session(pack, threads=1) as session:
            if pack.adapters["a"].card.task == DEADLY:
                os.kill(os.getpid(), signal.SIGKILL)
            session.ask(PROMPT, max_tokens=4)

    def look(self, versions: dict[str, str]) -> str | None:
        """The version that it has now, each byte of it checked; None for nothing."""
        self.enter()
        found = Store().find(NAME)
        version = None
        if found is not None:
            verify_folder(found[1])
            version = versions[found[0].digest]
        now_s = time.monotonic()
        if version != self.seen:
            if self.seen is not None and version is not None and version < self.seen:
                self.back_s = max(self.back_s, now_s - self.since_s)
                self.left.append(self.seen)
            self.seen, self.since_s = version, now_s
        return version


class Maker:
    """Who makes the packs; `versions`: digest -> version."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.site = folder, folder / "site"
        self.base = make_shape(folder / "base.gguf", SHAPE, "q4_0")
        self.key = SecretKey.new()
        self.secret = self.key.text(PASSPHRASE, (1 << 15, 1 << 20))
        trust_key(self.key.public.text(), "maker")
        self.versions: dict[str, str] = {}

    def release(self, version: str, percent: float, *, task: str = "talk", golden: str | None = None) -> None:
        """Signs a pack with another adapter, and releases it.

        Args:
            golden: what its answer shall be; None for what it is.
        """
        adapter = self.folder / f"{version}.gguf"
        write_random_adapter(BaseInfo.open(self.base), adapter, rank=4, seed=len(self.versions), size=3)
        prompt, answer = self._answer(adapter)
        golden_row = {"prompt": prompt, "equals": answer} if golden is None else {"prompt": prompt, "contains": golden}
        card = TaskCard(task=task, description=version, max_tokens=4, golden=(golden_row,))
        folder = self.folder / version
        build_pack(folder, base=self.base, adapters=[NewAdapter("a", adapter, card)], name=NAME, default_adapter="a")
        (folder / MINISIG_FILE).write_text(sign_pack(folder, self.secret, PASSPHRASE, version)[1])
        found = publish(self.site, folder, self.key, percent=percent).find(version)
        self.versions[found.pack] = version

    def _answer(self, adapter: Path) -> tuple[str, str]:
        """A prompt that the random model says something to, and what it says."""
        place = self.folder / "answer.json"

        def ask() -> None:
            from ...edge.engines import open_files

            with open_files(self.base, {"a": adapter}, adapter="a", threads=1) as session:
                for n in range(200):
                    text = session.ask(f"{PROMPT} {n}", temperature=0.0, max_tokens=4).text
                    if text.strip() and "\ufffd" not in text:
                        break
                place.write_text(json.dumps([f"{PROMPT} {n}", text]), encoding="utf-8")

        if os.waitpid(in_a_child(ask), 0)[1]:
            raise RuntimeError("the maker's model does not answer")
        prompt, answer = json.loads(place.read_text(encoding="utf-8"))
        return str(prompt), str(answer)

    def set(self, version: str, **values: Any) -> None:
        """Changes a release: its percent, or that it is withdrawn."""
        change(self.site, self.key, lambda channel: channel.with_release(replace(channel.find(version), **values)))


@dataclass
class Fleet:
    """Devices that are run, killed and looked at."""

    devices: Sequence[Device]
    maker: Maker
    url: str
    rng: np.random.Generator
    n_ticks: int = 0
    n_killed: int = 0
    typical_s: float = 2.0

    def run(self, devices: Sequence[Device], kill: bool) -> None:
        """A tick of each device, some at once; killed at a random moment, or let be. Then each is looked at."""
        waiting = list(devices)
        running: dict[int, tuple[Device, float, float | None]] = {}
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                device = waiting.pop()
                child = in_a_child(functools.partial(device.tick, self.url))
                delay_s = float(self.rng.uniform(0, self.typical_s)) if kill else None
                running[child] = (device, time.monotonic(), delay_s)
            time.sleep(0.005)
            for child, (device, began_s, delay_s) in [*running.items()]:
                took_s = time.monotonic() - began_s
                ended, status = os.waitpid(child, os.WNOHANG)
                if not ended and delay_s is not None and took_s >= delay_s:
                    os.kill(child, signal.SIGKILL)
                    ended, status = os.waitpid(child, 0)
                    self.n_killed += os.waitstatus_to_exitcode(status) == -signal.SIGKILL
                if not ended:
                    continue
                if os.waitstatus_to_exitcode(status) == 0:
                    self.typical_s += 0.2 * (took_s - self.typical_s)
                del running[child]
                self.n_ticks += 1
                device.look(self.maker.versions)

    def kills(self, n: int) -> None:
        """So many kills, of devices drawn at random."""
        wanted = self.n_killed + n
        while self.n_killed < wanted:
            n_now = min(wanted - self.n_killed, len(self.devices))
            drawn = self.rng.permutation(len(self.devices))[:n_now]
            self.run([self.devices[at] for at in drawn], kill=True)

    def settle(self, wanted: Callable[[Device], bool]) -> int:
        """Lets all run until each is as it shall be; gives how many are not after `MOST_ROUNDS`."""
        for _ in range(MOST_ROUNDS):
            late = [device for device in self.devices if not wanted(device)]
            if not late:
                return 0
            self.run(late, kill=False)
        return len([device for device in self.devices if not wanted(device)])

    def versions(self) -> dict[str, int]:
        """version -> how many devices have it."""
        return dict(Counter(str(device.look(self.maker.versions)) for device in self.devices))


def refused_by(device: Device, digest: str) -> bool:
    """Whether a device noted that a version failed on it."""
    device.enter()
    return digest in read_state(Store(), NAME).refused


def is_chosen(maker: Maker, device: Device, version: str) -> bool:
    """Whether a release is for a device now."""
    from ...edge.update.channel import Channel

    device.enter()
    channel = Channel.parse((maker.site / "channel.json").read_bytes())
    return channel.find(version).is_for(machine_id())


def simulate(folder: Path, n_devices: int, n_kills: int, seed: int) -> dict[str, Any]:
    """Runs all phases; what happened, and `broken`: the promises that were not kept."""
    os.environ["SLM_EDGE_TRUST"] = str(folder / "trust")
    devices = [Device(folder / f"device-{n}") for n in range(n_devices)]
    devices[0].enter()
    maker = Maker(folder)
    maker.release("1.0", 100)
    log = folder / "asked.txt"
    log.touch()
    phases: list[dict[str, Any]] = []
    broken: list[str] = []
    share = 0.0
    command = [sys.executable, "-c", SERVER, str(maker.site), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/channel.json"
        fleet = Fleet(devices, maker, url, np.random.default_rng(seed))

        def phase(name: str, wanted: Callable[[Device], bool], kill_share: float = 1 / 6) -> None:
            nonlocal share
            before, share = fleet.n_killed, share + kill_share
            fleet.kills(round(n_kills * share) - before)
            late = fleet.settle(wanted)
            row = {"phase": name, "n_killed": fleet.n_killed - before, "late": late, "versions": fleet.versions()}
            phases.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)  # noqa: T201
            if late:
                broken.append(f"{name}: {late} devices are not as they shall be")

        def has(version: str, other: str) -> Callable[[Device], bool]:
            return lambda device: device.seen == (version if is_chosen(maker, device, version) else other)

        try:
            phase("1.0 to all", lambda device: device.seen == "1.0")
            maker.release("1.1", 25)
            for percent in (25, 50, 100):
                maker.set("1.1", percent=percent)
                phase(f"1.1 to {percent} %", has("1.1", "1.0"), 1 / 18)
            maker.release("1.2", 50, golden="what no model says")
            bad = next(digest for digest, version in maker.versions.items() if version == "1.2")
            tried = [device for device in devices if is_chosen(maker, device, "1.2")]
            phase(
                "1.2, whose golden prompts fail, to 50 %", lambda device: device not in tried or refused_by(device, bad)
            )
            if any(device.seen != "1.1" or "1.2" in device.left for device in devices):
                broken.append("a device used 1.2")
            maker.set("1.2", withdrawn=True, percent=100)
            n_asked = log.read_text().count(bad)
            fleet.run(devices, kill=False)
            if log.read_text().count(bad) != n_asked:
                broken.append("1.2 was fetched after it was withdrawn")
            maker.release("1.3", 100, task=DEADLY)
            deadly = next(digest for digest, version in maker.versions.items() if version == "1.3")
            phase("1.3, which dies in use, to all", lambda device: device.seen == "1.1" and refused_by(device, deadly))
            maker.set("1.3", withdrawn=True)
            maker.release("1.4", 100)
            phase("1.4 to all", lambda device: device.seen == "1.4", 1 / 3)
        finally:
            server.terminate()
    return {
        "n_devices": n_devices,
        "n_ticks": fleet.n_ticks,
        "n_killed": fleet.n_killed,
        "n_back_by_themselves": sum("1.3" in device.left for device in devices),
        "longest_back_s": round(max(device.back_s for device in devices), 1),
        "phases": phases,
        "broken": broken,
    }


@click.command()
@click.option("--devices", default=20, show_default=True, help="How many.")
@click.option("--kills", default=200, show_default=True, help="How many processes are killed at random.")
@click.option("--seed", default=1, show_default=True, help="Of what is drawn.")
def main(devices: int, kills: int, seed: int) -> None:
    """Runs the fleet."""
    with tempfile.TemporaryDirectory() as folder:
        told = simulate(Path(folder), devices, kills, seed)
    print(json.dumps(told, indent=2))  # noqa: T201
    sys.exit(1 if told["broken"] else 0)


if __name__ == "__main__":
    main()
