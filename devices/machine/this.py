"""A device by its name, this machine among them: what was probed before, or a probe now."""

from ...edge.console import note, progress
from ..catalogue.catalogue import Device, find_sizes
from ..predict.predict import Calibration
from ..predict.unit_factors import load_calibration
from . import probe as probes


def this_device(fresh: bool = False) -> tuple[Device, Calibration | None]:
    """This machine, probed in a quiet moment: now, or before where `fresh` is not asked; else as not probed."""
    found = None if fresh else probes.kept_probe()
    if found is None:
        reason = probes.busy_reason(probes.others_cores())
        if reason is None:
            note("probing this machine …")
            with progress("probing", probes.N_STEPS, "steps") as advance:
                found = probes.probe(advance)
            reason = found.busy
        if found is None or reason:
            note(f"{reason}: rates of this machine would come out too low, so none are kept or forecast")
            return probes.unprobed_device(reason or ""), None
        probes.save_probe(found)
    return found.device, load_calibration("this") or found.calibration


def named_sizes(name: str) -> tuple[list[Device], Calibration | None]:
    """The device with this name in the sizes that it is sold in, or "this"; and what corrects its forecasts.

    Raises:
        InputError: there is no such device.
    """
    if name == "this":
        device, calibration = this_device()
        return [device], calibration
    return find_sizes(name), load_calibration(name)
