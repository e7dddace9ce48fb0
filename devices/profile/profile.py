"""One profile from beginning to end: opens the pack, measures every case, gathers the document."""

import datetime
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from ...edge.console import Advance, progress
from ...edge.engines import open_session
from ...edge.files.read import sha256_file
from ...edge.options import EngineOptions
from ...edge.pack.pack import Pack, PackedAdapter, find_adapter
from ...edge.session.session import Session
from ...edge.system.load import OthersCores, busy_words
from ..catalogue.workload import Workload
from ..machine.energy import Meter
from ..machine.record import machine_record
from ..machine.sensors import Sensors, energy_between, sampled
from ..predict.unit_factors import work_dict
from .measure import Plan, load_times, measure_case, measure_swaps, memory_now, sustain

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True)
class Request:
    """What to profile and how; None leaves a choice to the defaults.

    Attributes:
        pack, base: one of them, or the starter pack for neither.
        adapters: names, "none" for the base alone; empty for the base and all.
        ram_bytes: the session is made to fit into this, or refused.
    """

    pack: Path | None = None
    base: Path | None = None
    adapters: tuple[str, ...] = ()
    quick: bool = False
    threads: int | None = None
    n_ctx_tokens: int | None = None
    repeats: int | None = None
    sustain_s: float = 0.0
    emulated: str | None = None
    ram_bytes: int | None = None


def run_profile(request: Request, sensors: Sensors | None = None) -> dict[str, Any]:
    """Measures and gives the document of `profile_schema.json`.

    Args:
        sensors: None: this machine's.

    Raises:
        SlmEdgeError: as `Pack.open` and `Session` do; an adapter that is not there is answered with those that are.
    """
    pack = None if request.base is not None else Pack.open(request.pack)
    names = _names(request, {} if pack is None else pack.adapters)
    sensors = sensors or Sensors()
    before, energy_before = sensors.read(), sensors.energy_counters()
    machine, others = machine_record(sensors), OthersCores()
    notes = _notes(request, machine)
    plan = Plan.quick() if request.quick else Plan()
    if request.repeats:
        plan = Plan(plan.prompt_tokens, plan.depths, plan.n_tokens, request.repeats)
    options: EngineOptions = {
        "n_ctx_tokens": request.n_ctx_tokens,
        "threads": request.threads,
        "ram_bytes": request.ram_bytes,
        # No snapshots on disk: a profile is of this run alone.
        "prefix_cache": None,
    }
    if request.base is not None:
        session = Session.of_files(request.base, {}, **options)
    else:
        session = open_session(pack, adapter=None, allow_pull=True, **options)
    base_path = session.base.file.path
    file_name = base_path.name if pack is None else pack.base.file_name
    threads = set()

    def tell_and_look(advance: Advance) -> None:
        advance(1)
        threads.add(session.threads_now)

    with session, sampled(sensors) as samples:
        plan = plan.within(session.n_ctx_tokens)
        choices = session.plan.choices
        n_steps = (len(names) + 1) * (len(plan.prompt_tokens) + len(plan.depths))
        with progress("profiling", n_steps, "tests") as advance:
            cases = [measure_case(session, name, plan, lambda: tell_and_look(advance)) for name in (None, *names)]
        swaps = measure_swaps(session, names, plan.repeats) if names else []
        sustained = None
        if request.sustain_s:
            with progress("sustaining", request.sustain_s, "s") as advance:
                last = names[0] if names else None
                meter = Meter(sensors, samples)
                rows = sustain(session, last, request.sustain_s, lambda seconds: advance(seconds))
                energy = meter.rows(rows[-1]["at_s"], sum(int(row["n_tokens"]) for row in rows)) if rows else []
            sustained = {"seconds": request.sustain_s, "adapter": last, "rows": rows, "energy": energy or None}
        busy = busy_words(others(), session.threads)
        if busy is not None:
            used = ", ".join(map(str, sorted(threads)))
            notes.insert(0, f"{busy}, so rates are low and scattered; {used} of {session.threads} threads computed")
        memory = {**memory_now(), "planned": session.plan.as_dict()}
        work = Workload.of_file(session.base.file, file_name.removesuffix(".gguf"))
        setup = {
            "threads": session.context.threads,
            "threads_batch": session.context.threads_batch,
            "n_ctx_tokens": session.n_ctx_tokens,
            "n_batch_tokens": choices.n_batch_tokens,
            "kv_type": choices.kv_type,
            "mmap": choices.mmap,
            "repack": choices.repack,
            "both_layouts": choices.both_layouts,
            "repeats": plan.repeats,
            "emulated": request.emulated,
        }
        model = {
            # What the file calls itself inside is often a riddle, and in the store its name is its sha256.
            "name": file_name.removesuffix(".gguf"),
            "file": file_name,
            "sha256": sha256_file(base_path),
            "fingerprint": session.base.fingerprint,
            "n_params": sum(tensor.n_values for tensor in session.base.file.tensors.values()),
            "work": work_dict(work),
        }
    # After the session is closed, so that the peak above is a session's and not that of two bases.
    load = load_times(session.base, mmap=choices.mmap, repack=choices.repack)
    return {
        "kind": "slm-edge-profile",
        "schema_version": SCHEMA_VERSION,
        "version": metadata.version("slm-edge"),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "model": model,
        "setup": setup,
        "load": load,
        "cases": cases,
        "swaps": swaps,
        "sustained": sustained,
        "memory": memory,
        "sensors": {
            "before": before,
            "after": sensors.read(),
            "samples": samples,
            "energy_j": energy_between(energy_before, sensors.energy_counters()),
        },
        "notes": notes,
    }


def _names(request: Request, adapters: dict[str, PackedAdapter]) -> list[str]:
    if not request.adapters:
        return list(adapters)
    wanted = [name for name in request.adapters if name != "none"]
    return [find_adapter(adapters, name).name for name in wanted]


def _notes(request: Request, machine: dict[str, Any]) -> list[str]:
    notes = []
    if request.emulated:
        notes.append(f"threads and memory of {request.emulated}; speed is not emulated")
    if machine["throttled"]:
        notes.append(f"throttling flags at the start: {', '.join(machine['throttled'])}")
    if machine["system"] != "Linux":
        notes.append(f"on {machine['system']} PSS, USS, temperatures and energy are not read")
    return notes
