"""The catalogue: one TOML per device in `boards/`, each fact with its source, and the classes of cores.

device = find_device("raspberry-pi-5-4gb")
device.number("theoretical_gb_per_s")       # 17.07
device.facts["read_gb_per_s"].source
"""

import difflib
import functools
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...edge.errors import DamagedError, InputError

FOLDER = Path(__file__).parent.parent
GIB = 1 << 30
# Of 2: part of the words in common and part of the letters.
LEAST_NEARNESS = 0.7


@dataclass(frozen=True)
class Fact:
    """A value and where it is from."""

    value: Any
    source: str


@dataclass(frozen=True)
class CoreClass:
    """What the cores of one kind do; see classes.toml.

    Attributes:
        features: of the CPU, as llama.cpp names them.
        repacked_since: tensor types (lower case) that this llama.cpp lays out anew for them, and the month since when.
        decode_cycles_per_weight, prefill_macs_per_cycle: by tensor type, "plain" for the rest; weights as stored.
        repacked_macs_per_cycle: the same of the types laid out anew.
        attention_macs_per_cycle: of queries with K and V.
        activation_cycles: for each value that a prompt's matrix products read or write.
        baseline_part: of the plain rate, what builds for any CPU of the kind reach, as ollama's for Arm.
    """

    name: str
    title: str
    features: Sequence[str]
    core_gb_per_s: float
    attention_macs_per_cycle: float
    activation_cycles: float
    baseline_part: float
    repacked_since: Mapping[str, str]
    decode_cycles_per_weight: Mapping[str, float]
    prefill_macs_per_cycle: Mapping[str, float]
    repacked_macs_per_cycle: Mapping[str, float]
    source: str

    @property
    def repacked(self) -> frozenset[str]:
        """The types that this llama.cpp lays out anew."""
        return frozenset(self.repacked_since)

    def repacked_in(self, month: str) -> frozenset[str]:
        """The types that a build of that month ("2025-03") lays out anew."""
        return frozenset(name for name, since in self.repacked_since.items() if since <= month)

    def macs_per_cycle(self, laid_out: Collection[str]) -> dict[str, float]:
        """By tensor type, "plain" for the rest, where these types are laid out anew."""
        anew = {name: rate for name, rate in self.repacked_macs_per_cycle.items() if name in laid_out}
        return {**self.prefill_macs_per_cycle, **anew}


@dataclass(frozen=True)
class Device:
    """A device of the catalogue, or the probed one.

    Attributes:
        ram_bytes: of this variant; the largest sold where the name says none.
        like: the device whose measurements hold for this one, which has the same chip and memory.
        system: one that this runtime is not for: "Android" or "iOS".
        unprobed: why this machine's rates are not known; no rate is forecast then.
        facts: by name: big_cores, clock_ghz, theoretical_gb_per_s, read_gb_per_s (by threads), …
    """

    id: str
    name: str
    cores: CoreClass
    ram_bytes: int
    facts: Mapping[str, Fact]
    also: tuple[str, ...] = ()
    note: str | None = None
    like: str | None = None
    system: str | None = None
    unprobed: str | None = None

    def number(self, fact: str, default: float | None = None) -> float:
        """A fact as a number; `default` where it is not known.

        Raises:
            InputError: it is not known and there is no default.
        """
        known = self.facts.get(fact)
        if known is None:
            if default is None:
                raise InputError(f"{fact} of {self.name} is not known", where=f"{self.id}.toml")
            return default
        return float(known.value)

    @property
    def n_cores(self) -> int:
        """Big cores."""
        return int(self.number("big_cores"))

    @property
    def usable_bytes(self) -> int:
        """RAM less what the system needs."""
        return self.ram_bytes - int(self.number("reserve_gib", 0.35) * GIB)

    def read_curve(self) -> dict[int, float]:
        """Measured sustained read rates in GB/s by number of threads; empty if nobody measured."""
        known = self.facts.get("read_gb_per_s")
        return {int(threads): float(rate) for threads, rate in known.value.items()} if known else {}


@functools.cache
def core_classes() -> dict[str, CoreClass]:
    """The table classes.toml."""
    data = tomllib.loads((FOLDER / "classes.toml").read_text(encoding="utf-8"))
    return {name: CoreClass(name=name, **row) for name, row in data.items()}


def read_device(path: Path) -> Device:
    """Reads one TOML of the catalogue.

    Raises:
        DamagedError: a fact without a source, or a key missing; all faults are named.
    """
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    faults = [f"{key} is missing" for key in ("name", "isa", "facts") if key not in data]
    facts = {}
    for name, row in data.get("facts", {}).items():
        if not isinstance(row, dict) or "value" not in row or not row.get("source"):
            faults.append(f"{name} has no value or no source")
        else:
            facts[name] = Fact(row["value"], row["source"])
    needed = ("ram_gib", "big_cores", "clock_ghz", "theoretical_gb_per_s")
    faults += [f"the fact {name} is missing" for name in needed if name not in facts]
    if data.get("isa") not in core_classes():
        faults.append(f"isa {data.get('isa')!r} is not one of {', '.join(core_classes())}")
    if faults:
        raise DamagedError("is not a device of the catalogue", where=path, problems=faults)
    return Device(
        id=path.stem,
        name=data["name"],
        cores=core_classes()[data["isa"]],
        ram_bytes=int(max(facts["ram_gib"].value) * GIB),
        facts=facts,
        also=tuple(data.get("also", ())),
        note=data.get("note"),
        like=data.get("like"),
        system=data.get("system"),
    )


@functools.cache
def devices() -> dict[str, Device]:
    """Every device of the catalogue by id."""
    return {path.stem: read_device(path) for path in sorted((FOLDER / "boards").glob("*.toml"))}


def variants(device: Device) -> list[Device]:
    """A device in each size of RAM that it is sold with, the smallest first."""
    sizes = sorted(device.facts["ram_gib"].value)
    return [with_ram(device, size) for size in sizes]


def with_ram(device: Device, gib: float) -> Device:
    """The variant with so much RAM."""
    amount = f"{gib:g}gb" if gib >= 1 else f"{round(gib * 1024)}mb"
    return replace(
        device, id=f"{device.id}-{amount}", name=f"{device.name}, {amount.upper()}", ram_bytes=int(gib * GIB)
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.lower())


def match_device(text: str) -> Device | None:
    """The device that a label means, RAM and remarks in it allowed: "Raspberry Pi 5 2GB"; None for none."""
    wanted = _plain(text)
    best: tuple[int, Device] | None = None
    for device in devices().values():
        for alias in (device.id, device.name, *device.also):
            plain = _plain(alias)
            if plain in wanted and (best is None or len(plain) > best[0]):
                best = (len(plain), device)
    return best[1] if best else None


def _by_alias(name: str) -> Device | None:
    """The device with this id or other name, as a whole: "raspberry-pi-4" and "rpi4" are the Raspberry Pi 4B."""
    wanted = re.sub("^rpi", "raspberrypi", _plain(name))
    for device in devices().values():
        if wanted in (_plain(alias) for alias in (device.id, device.name, *device.also)):
            return device
    return None


def find_sizes(name: str) -> list[Device]:
    """A device by any of its names, in each size of RAM, the smallest first; the one size alone where it is named.

    "raspberry-pi-5-8gb", "raspberry pi 5 8 GB" and "pi5 8gb" name a size, "raspberry-pi-5" and "pi5" do not.

    Raises:
        InputError: it is not in the catalogue, or not sold with so much RAM.
    """
    whole = _by_alias(name)
    if whole is not None:
        return variants(whole)
    found = re.fullmatch(r"(.+?)[\s,_-]*(\d+(?:\.\d+)?)[\s_-]*(gb|gib|g|mb|mib)", name.strip().lower())
    device = _by_alias(found[1]) if found else None
    if not found or device is None:
        near = nearest(name, {device.id: (device.name, *device.also) for device in devices().values()})
        hint = f"near: {', '.join(near)}. " if near else ""
        raise InputError(f"no device {name!r} in the catalogue", hint=f"{hint}slm-edge devices list shows all")
    gib = float(found[2]) / (1024 if found[3].startswith("m") else 1)
    sizes = device.facts["ram_gib"].value
    if gib not in sizes:
        raise InputError(
            f"{device.name} is not sold with {found[2]} {found[3].upper()}",
            hint=f"it is with {', '.join(f'{size:g}' for size in sizes)} GB",
        )
    return [with_ram(device, gib)]


def find_device(name: str) -> Device:
    """A device by any of its names, with the RAM in it or without: then with the most that it is sold with.

    Raises:
        InputError: as `find_sizes`.
    """
    return _by_alias(name) or find_sizes(name)[0]


def nearest(name: str, known: Mapping[str, Iterable[str]]) -> list[str]:
    """Up to three of `known`, by their own or other names (the values), the nearest first; none where none is near."""
    wanted = set(_words(name))

    def nearness(alias: str) -> float:
        words = set(_words(alias))
        shared = len(wanted & words) / max(len(wanted | words), 1)
        return shared + difflib.SequenceMatcher(None, _plain(name), _plain(alias)).ratio()

    scores = {id_: max(nearness(alias) for alias in (id_, *also)) for id_, also in known.items()}
    return [id_ for id_ in sorted(scores, key=lambda id_: -scores[id_]) if scores[id_] >= LEAST_NEARNESS][:3]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+|\d+(?:\.\d+)?", text.lower())
