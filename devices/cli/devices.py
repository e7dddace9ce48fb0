"""`slm-edge devices`: the catalogue, and what a model will need and do on each device."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...edge.cli.options import PackType
from ...edge.console import emit, json_option
from ...edge.errors import InputError

if TYPE_CHECKING:
    from ..catalogue.catalogue import Device
    from ..predict.fit import Target, Wish


@click.group()
def devices() -> None:
    """What devices can do, before anything is bought or downloaded.

    \b
    Example:
      slm-edge devices fit --device raspberry-pi-5-4gb --model llama-3.2-1b --quant q4_0 --context 4096
    """


@devices.command("list")
@json_option
def list_devices(as_json: bool) -> None:
    """List the catalogue.

    \b
    Example:
      slm-edge devices list
    """
    from ..catalogue import catalogue

    rows = list(catalogue.devices().values())
    data = [{"id": row.id, "name": row.name, "ram_gib": row.facts["ram_gib"].value} for row in rows]
    width = max(len(row.id) for row in rows)
    lines = [
        f"{row.id:{width}}  {row.name} ({', '.join(f'{n:g}' for n in row.facts['ram_gib'].value)} GB)" for row in rows
    ]
    lines.append(f"{'this':{width}}  this machine, probed")
    emit(data, as_json, "\n".join(lines))


def _sizes(device: "Device") -> str:
    return ", ".join(f"{n:g}" for n in device.facts["ram_gib"].value)


@devices.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show what is known of a device, each fact with its source; "this" probes this machine.

    \b
    Example:
      slm-edge devices show raspberry-pi-5
    """
    from ..catalogue.catalogue import find_device
    from ..machine.this import this_device
    from ..predict.unit_factors import load_calibration

    device, calibration = this_device(fresh=True) if name == "this" else (find_device(name), load_calibration(name))
    facts = {key: {"value": fact.value, "source": fact.source} for key, fact in device.facts.items()}
    data: dict[str, Any] = {"id": device.id, "name": device.name, "cores": device.cores.name, "facts": facts}
    lines = [f"{device.name} ({device.id})", f"  cores: {device.cores.title}"]
    lines += [f"  {key:22s} {fact['value']!s:32s} {fact['source']}" for key, fact in facts.items()]
    lines.append(f"  rates of its class: {device.cores.source}")
    if calibration is not None:
        data["calibration"] = {"decode": calibration.decode, "prefill": calibration.prefill, "kv": calibration.kv_part}
        lines.append(f"  calibrated by {calibration.source}")
    if device.system:
        lines.append(f"  {device.system}: this runtime does not run there; its forecasts are llama.cpp's")
    if device.unprobed:
        lines.append(f"  not probed: {device.unprobed}. Try again when it is quiet.")
    if device.note:
        lines.append(f"  {device.note}")
    data |= {"system": device.system, "unprobed": device.unprobed}
    emit(data, as_json, "\n".join(lines))


@devices.command()
@click.argument("named", metavar="[MODEL]", required=False)
@click.option(
    "--device",
    "device_name",
    metavar="NAME",
    help="A device of `devices list`, with its RAM if one size is meant (pi5 4gb).  [default: this machine]",
)
@click.option("--all", "all_devices", is_flag=True, help="Print a table of the whole catalogue.")
@click.option("--pack", type=PackType(), help='Folder of a pack, or a reference; "starter" for the starter pack.')
@click.option("--model", metavar="NAME|FILE|URL", help="A published model, or a GGUF: only its header is read.")
@click.option(
    "--quant", metavar="TYPE", help="Quantisation of a published model, unless its name ends in it.  [default: q4_k_m]"
)
@click.option("--context", type=click.IntRange(1), default=2048, show_default=True, help="Longest prompt and answer.")
@click.option("--prompt", type=click.IntRange(1), default=256, show_default=True, help="Tokens of a typical prompt.")
@click.option("--adapter-rank", type=click.IntRange(1, 1024), help="One adapter of this rank on all linear matrices.")
@click.option("--adapter-type", type=click.Choice(["q8_0", "f16", "f32"]), default="q8_0", show_default=True)
@click.option("--kv", type=click.Choice(["f16", "q8_0", "f32"]), help="Type of the KV cache.  [default: f16]")
@click.option("--threads", type=click.IntRange(1, 512), help="[default: the best for decoding, all cores for prompts]")
@click.option("--mmap/--no-mmap", default=None, help="Map the base.  [default: what is faster, then smaller]")
@click.option("--repack/--no-repack", default=None, help="Copy weights into the faster layout.  [default: as above]")
@click.option("--explain", is_flag=True, help="Show the arithmetic.")
@json_option
@click.pass_context
def fit(ctx: click.Context, /, **given: Any) -> None:
    """Say whether a model fits a device and how fast it will run. Exits with 1 if it does not fit.

    MODEL is as --model. Of a device that is sold with several sizes of RAM, the smallest that fits is taken.

    \b
    Examples:
      slm-edge devices fit "llama 3.2 3b q4_k_m" --device "pi5 8gb"
      slm-edge devices fit --device raspberry-pi-5-4gb --model llama-3.2-1b --quant q4_0 --adapter-rank 16
      slm-edge devices fit --all --pack starter
      slm-edge devices fit --device this --model https://hub/model.gguf --explain
    """
    from ..catalogue import catalogue
    from ..machine.this import named_sizes
    from ..predict.fit import judge_sizes
    from ..predict.fit_text import explanation, table_text, verdict_dict, verdict_text
    from ..predict.predict import Predictor

    if given["device_name"] and given["all_devices"]:
        raise click.UsageError("Give either --device or --all.")
    target, wish = _target_and_wish(given)
    as_json: bool = given["as_json"]
    if given["all_devices"]:
        every = [catalogue.variants(device) for device in catalogue.devices().values()]
        verdicts = [judge_sizes(sizes, target, wish, seek=False) for sizes in every]
        emit([verdict_dict(verdict) for verdict in verdicts], as_json, table_text(verdicts))
        ctx.exit(0 if any(verdict.fits for verdict in verdicts) else 1)
    sizes, calibration = named_sizes(given["device_name"] or "this")
    verdict = judge_sizes(sizes, target, wish, calibration=calibration)
    text = verdict_text(verdict)
    if given["explain"] and not verdict.device.unprobed:
        text += explanation(verdict, Predictor(verdict.device, calibration=calibration))
    emit(verdict_dict(verdict), as_json, text)
    ctx.exit(0 if verdict.fits else 1)


def _target_and_wish(given: dict[str, Any]) -> "tuple[Target, Wish]":
    from ..catalogue.header import is_url, open_header
    from ..catalogue.quant_mix import check_label, split_label
    from ..catalogue.shapes import find_shape
    from ..predict.fit import Target, Wish

    model, pack = given["model"] or given["named"], given["pack"]
    if bool(model) == bool(pack) or (given["model"] and given["named"]):
        raise click.UsageError("Give either a model or --pack.")
    adapters_bytes = n_adapters = 0
    if pack:
        target, sizes = _pack_target(pack)
        if not given["adapter_rank"]:
            adapters_bytes, n_adapters = sum(sizes), len(sizes)
    elif is_url(model) or model.endswith(".gguf") or Path(model).is_file():
        if given["quant"]:
            raise click.UsageError("--quant goes with a published model's name; a GGUF has its types.")
        with open_header(model) as file:
            target = Target.of_file(file)
    else:
        name, label = split_label(model)
        if label and given["quant"]:
            raise click.UsageError(f"{model!r} names its quantisation; leave out --quant.")
        target = Target.of_shape(find_shape(name), check_label(label or given["quant"] or "q4_k_m"))
    trained = target.work.n_ctx_train_tokens
    if trained and given["context"] > trained:
        raise InputError(f"a context of {given['context']} tokens is asked for; the model was trained for {trained}")
    wish = Wish(
        context_tokens=given["context"],
        prompt_tokens=given["prompt"],
        adapter_rank=given["adapter_rank"] or 0,
        adapter_bytes=adapters_bytes,
        n_adapters=n_adapters,
        adapter_type=given["adapter_type"],
        kv_type=given["kv"],
        threads=given["threads"],
        mmap=given["mmap"],
        repack=given["repack"],
    )
    return target, wish


def _pack_target(folder: Path) -> "tuple[Target, list[int]]":
    """A pack's base, from its file where it is here, else from the header at its source; and its adapters' sizes."""
    from ...edge.pack.pack import Pack
    from ..catalogue.header import open_header
    from ..predict.fit import Target

    pack = Pack.open(None if str(folder) == "starter" else folder)
    sizes = [adapter.size_bytes for adapter in pack.adapters.values()]
    try:
        place = str(pack.base_path())
    except InputError:
        urls = [source["url"] for source in pack.base.sources if source["kind"] == "url"]
        if not urls:
            raise
        place = urls[0]
    with open_header(place) as file:
        return Target.of_file(file, pack.base.file_name.removesuffix(".gguf")), sizes


@devices.command()
@click.argument("profile_file", type=click.Path(path_type=Path))
@click.option("--device", "device_name", default="this", show_default=True, help="Device that was profiled.")
@json_option
def calibrate(profile_file: Path, device_name: str, as_json: bool) -> None:
    """Use the profile of one model to forecast others: `devices fit` then takes it into account.

    \b
    Example:
      slm-edge profile --quick --json > profile.json && slm-edge devices calibrate profile.json
    """
    from ...edge.files.read import read_table
    from ..catalogue.catalogue import find_device
    from ..machine.probe import kept_probe
    from ..machine.this import this_device
    from ..predict.unit_factors import calibrate as calibrated
    from ..predict.unit_factors import save_calibration
    from ..profile.compare import reading_profile

    profile = read_table(profile_file)
    device = this_device()[0] if device_name == "this" else find_device(device_name)
    if device.unprobed:
        raise InputError(f"this machine cannot be probed now: {device.unprobed}", hint="try again when it is quiet")
    kept = kept_probe() if device_name == "this" else None
    with reading_profile(profile_file):
        calibration = calibrated(profile, device, kept.calibration if kept else None)
    path = save_calibration(device_name, calibration)
    data = {"device": device_name, "decode": calibration.decode, "prefill": calibration.prefill}
    data |= {
        "kv_part": calibration.kv_part,
        "pair_s": calibration.pair_s,
        "layer_s": calibration.layer_s,
        "file": str(path),
    }
    lines = [f"{device.name}, from {calibration.source}", f"  decode  {calibration.decode:.3f} x the model's rate"]
    if calibration.layer_s is not None:
        lines.append(f"  {calibration.layer_s * 1e6:.0f} microseconds for each layer of a token")
    lines += [f"  prefill {scale:.3f} x, kernel {kernel}" for kernel, scale in (calibration.prefill or {}).items()]
    if calibration.kv_part is not None:
        lines.append(f"  context streamed at {calibration.kv_part:.2f} x the rate of weights")
    if calibration.pair_s is not None:
        lines.append(f"  {calibration.pair_s * 1e6:.1f} microseconds for each pair of an adapter")
    emit(data, as_json, "\n".join(lines))
