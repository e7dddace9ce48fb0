"""From one profile to predictions of other models: what a unit does over what the model says, kept per device.

calibration = calibrate(profile, device)         # a document of `slm-edge profile --json`
save_calibration("this", calibration)
Predictor(device, calibration=load_calibration("this"))
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...edge.errors import InputError
from ...edge.files.atomic import make_folder, write_json
from ...edge.files.cache import cache_folder
from ...edge.files.read import read_table
from ...edge.gguf.types import GgmlType
from ..catalogue.catalogue import Device
from ..catalogue.workload import Workload
from .predict import AdapterCost, Calibration, Predictor, Speed


def work_dict(work: Workload) -> dict[str, Any]:
    """A workload for JSON, as a profile carries it."""
    data = {field.name: getattr(work, field.name) for field in dataclasses.fields(work)}
    data["weights_by_type"] = {kind.name: n for kind, n in work.weights_by_type.items()}
    data["lora_shapes"] = [list(pair) for pair in work.lora_shapes]
    data["streamed_bytes"] = work.streamed_bytes
    return data


def work_of(data: Mapping[str, Any]) -> Workload:
    """The reverse of `work_dict`.

    Raises:
        InputError: it is none.
    """
    try:
        names = {field.name for field in dataclasses.fields(Workload)}
        values = {name: value for name, value in data.items() if name in names}
        values["weights_by_type"] = {GgmlType[name]: int(n) for name, n in data["weights_by_type"].items()}
        values["lora_shapes"] = tuple((int(a), int(b)) for a, b in data["lora_shapes"])
        return Workload(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the profile's table of its model is not readable ({error})") from None


def calibrate(profile: Mapping[str, Any], device: Device, probed: Calibration | None = None) -> Calibration:
    """What a profile says of the unit that it was made on.

    Args:
        profile: a document of the kind "slm-edge-profile".
        device: its catalogue entry, or the probed one.
        probed: of a probe of the same unit; speaks for types and kernels that the profiled model does not meet. What
            the model's tokens take beyond the probe's rates is then its layers'.

    Raises:
        InputError: no profile, or one without decode rates of the base.
    """
    if profile.get("kind") != "slm-edge-profile":
        raise InputError("is not a profile", hint="slm-edge profile --json > profile.json writes one")
    work = work_of(profile["model"]["work"])
    found = dataclasses.replace(probed or Calibration(), decode=1.0, prefill={"repack": 1.0, "plain": 1.0})
    bare = Predictor(device, calibration=found)
    base = _case(profile, None)
    threads = int(profile["setup"]["threads"])
    # Profiles of before 2026-11-25 had one number for both.
    prompt_threads = int(profile["setup"].get("threads_batch", threads))
    decode = base["decode"]
    if not decode:
        raise InputError("the profile has no decode rates of the base")
    shallow = min(decode, key=lambda row: row["depth_tokens"])

    def predicted(known: Calibration) -> Speed:
        return Predictor(device, calibration=known).decode(work, threads=threads, depth_tokens=_mean_depth(shallow))

    by_types = probed.decode if probed and probed.cycles else None
    found = dataclasses.replace(found, kv_part=_kv_part(decode, work, bare, threads, by_types))
    if by_types:
        parts = predicted(found).parts
        rest_s = by_types / _rate(shallow) - sum(seconds for name, seconds in parts.items() if name != "layers")
        found = dataclasses.replace(found, layer_s=max(rest_s / work.n_layers, 0.0))
    found = dataclasses.replace(found, decode=_rate(shallow) / predicted(found).tokens_per_s)
    as_built = profile["setup"]["repack"]
    kernel = bare.kernel_of(work) if as_built else "plain"
    scales = [
        _rate(row)
        / bare.prefill(
            work, n_prompt_tokens=row["n_prompt_tokens"], threads=prompt_threads, kernel=None if as_built else "plain"
        ).tokens_per_s
        for row in base["prefill"]
        if row["n_prompt_tokens"] >= 64
    ]
    prefill = dict(probed.prefill or {}) if probed else {}
    prefill |= {kernel: statistics.median(scales)} if scales else {}
    return dataclasses.replace(
        found,
        prefill=prefill or None,
        pair_s=_pair_s(profile, work, device, found, threads),
        source=f"{profile['model']['name']} on {profile['created']}",
    )


def _case(profile: Mapping[str, Any], adapter: str | None) -> Mapping[str, Any]:
    for case in profile["cases"]:
        if case["adapter"] == adapter:
            found: Mapping[str, Any] = case
            return found
    raise InputError(f"the profile has no measurements of {adapter or 'the base'}")


def _rate(row: Mapping[str, Any]) -> float:
    return float(row["tokens_per_s"]["median"])


def _mean_depth(row: Mapping[str, Any]) -> float:
    return float(row["depth_tokens"]) + float(row["n_tokens"]) / 2


def _kv_part(
    decode: Sequence[Mapping[str, Any]], work: Workload, bare: Predictor, threads: int, scale: float | None
) -> float | None:
    """The rate of K and V over that of weights, from the slope of seconds per token with depth.

    Args:
        scale: measured over predicted rate of weights; None: that of the shallower of the rates.
    """
    if len(decode) < 2:
        return None
    near, far = min(decode, key=_mean_depth), max(decode, key=_mean_depth)
    slope = (1 / _rate(far) - 1 / _rate(near)) / (_mean_depth(far) - _mean_depth(near))
    if _mean_depth(far) - _mean_depth(near) < 256 or slope <= 0:
        return None
    scale = scale or _rate(near) / bare.decode(work, threads=threads).tokens_per_s
    rate = bare.stream_gb_per_s(threads) * 1e9 * scale
    return min(max(work.kv_bytes_per_token() / slope / rate, 0.05), 2.0)


def _pair_s(
    profile: Mapping[str, Any], work: Workload, device: Device, calibration: Calibration, threads: int
) -> float | None:
    """The fixed time of an adapter's pair, the median over the adapters that were measured."""
    predictor = Predictor(device, calibration=calibration)
    found = []
    base = _case(profile, None)["decode"]
    for case in profile["cases"]:
        if case["adapter"] is None or not case["decode"] or not case.get("n_pairs"):
            continue
        row = min(case["decode"], key=_mean_depth)
        same = [other for other in base if other["depth_tokens"] == row["depth_tokens"]]
        if not same:
            continue
        extra_s = 1 / _rate(row) - 1 / _rate(same[0])
        rate = predictor.stream_gb_per_s(threads) * 1e9
        found.append((extra_s - case["adapter_bytes"] / rate) / case["n_pairs"])
    return max(statistics.median(found), 0.0) if found else None


def adapter_of_case(case: Mapping[str, Any]) -> AdapterCost:
    """The adapter of a profile's case, for predictions."""
    return AdapterCost(int(case["adapter_bytes"] * 32 / 34), 34 / 32, int(case["n_pairs"] or 0))


def _path(name: str) -> Path:
    return cache_folder() / "devices" / f"{name}.json"


def save_calibration(name: str, calibration: Calibration) -> Path:
    """Keeps it for `name` ("this" or a device's id); returns the file."""
    path = _path(name)
    make_folder(path.parent)
    data = dataclasses.asdict(calibration)
    if any(isinstance(value, float) and not math.isfinite(value) for value in data.values()):
        raise InputError("the profile's rates are not numbers")
    write_json(path, data)
    return path


def load_calibration(name: str) -> Calibration | None:
    """What was kept for `name`, or None."""
    path = _path(name)
    if not path.is_file():
        return None
    data = read_table(path)
    try:
        return Calibration(**data)
    except TypeError:
        raise InputError("is not a calibration of this version", where=path, hint=f"rm {path}") from None
