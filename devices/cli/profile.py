"""`slm-edge profile`: speed and memory of a pack on this device."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...edge.cli.options import PackType
from ...edge.console import emit, json_option, note
from ...edge.errors import InputError

if TYPE_CHECKING:
    from ..catalogue.catalogue import Device

SCHEMA_FILE = Path(__file__).parent.parent / "profile_schema.json"


@click.command()
@click.option("--pack", type=PackType(), help="Folder of a pack, or a reference.  [default: the starter pack]")
@click.option("--base", type=click.Path(path_type=Path), help="A base GGUF alone, in place of a pack.")
@click.option(
    "--adapter", "adapters", multiple=True, metavar="NAME|none", help="Adapter to measure; repeatable.  [default: all]"
)
@click.option(
    "--quick", is_flag=True, help="Fewer lengths and repeats; about a minute with the starter pack on an idle machine."
)
@click.option("--threads", type=click.IntRange(1, 512), help="CPU threads.  [default: one per fast physical core]")
@click.option("--context", type=click.IntRange(64), help="Tokens of context.  [default: 2048]")
@click.option(
    "--repeats", type=click.IntRange(2, 100), help="Repeats of each measurement.  [default: 5, 3 with --quick]"
)
@click.option("--sustain", metavar="TIME", help="Afterwards decode without a pause for this long, e.g. 90s or 5m.")
@click.option(
    "--emulate",
    metavar="DEVICE",
    help="Limit threads and memory to a device's, of several sizes the smallest (or pi5 8gb); speed is not emulated.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the profile here, as JSON.")
@click.option("--html", "html_file", type=click.Path(path_type=Path), help="Write a report with charts, one file.")
@click.option("--jsonl", "jsonl_file", type=click.Path(path_type=Path), help="Write llama-bench's JSONL.")
@click.option("--compare", "compare_file", type=click.Path(path_type=Path), help="Compare with an older profile.")
@click.option("--force", is_flag=True, help="Compare different devices, builds or setups as well.")
@click.option(
    "--assert",
    "assertions",
    multiple=True,
    metavar="TEST",
    help='Exit with 1 unless this holds, e.g. "decode_tokens_per_s>=8".',
)
@click.option("--schema", is_flag=True, help="Print the JSON schema of a profile, and measure nothing.")
@json_option
@click.pass_context
def profile(ctx: click.Context, /, **given: Any) -> None:
    """Measure how fast a pack runs here and how much memory it takes.

    Measures the base and each adapter as llama-bench does: random tokens, a warm-up, repeats, every sample kept. Exits
    with 1 if an --assert does not hold.

    \b
    Examples:
      slm-edge profile --quick
      slm-edge profile --out new.json --html report.html --compare old.json
      slm-edge profile --quick --assert "decode_tokens_per_s>=8" --assert "peak_rss_bytes<=1.2e9"
    """
    if given["schema"]:
        click.echo(SCHEMA_FILE.read_text(encoding="utf-8").rstrip())
        return
    from ...edge.files.atomic import atomic_file, write_json
    from ...edge.files.read import read_table
    from ..profile.compare import check_comparable, compare, compare_text, reading_profile
    from ..profile.html import report
    from ..profile.text import failed_assertions, jsonl, metrics, parse_assertion, table

    if given["pack"] is not None and given["base"] is None and given["pack"].is_file():
        given["pack"], given["base"] = None, given["pack"]
    # What can be known to be wrong is said before minutes are spent.
    wrong = [text for text in given["assertions"] if parse_assertion(text) is None]
    if wrong:
        raise InputError("an assertion cannot be read", problems=[repr(text) for text in wrong])
    old = read_table(given["compare_file"]) if given["compare_file"] else None
    sustain_s = parse_seconds(given["sustain"]) if given["sustain"] else 0.0
    device = _emulated(given["emulate"])
    data = _measure(given, sustain_s, device)
    for path, text in (
        (given["html_file"], report(data) if given["html_file"] else ""),
        (given["jsonl_file"], jsonl(data) + "\n" if given["jsonl_file"] else ""),
    ):
        if path:
            with atomic_file(path) as aside:
                aside.write_text(text, encoding="utf-8")
    if given["out"]:
        write_json(given["out"], data)
    shown = table(data)
    if old is not None:
        with reading_profile(given["compare_file"]):
            if not given["force"]:
                check_comparable(old, data)
            rows = compare(old, data)
        data["comparison"] = rows
        shown += f"\n\nagainst {given['compare_file']}\n{compare_text(rows)}"
    emit(data, given["as_json"], shown)
    failed = failed_assertions(data, given["assertions"])
    for text in failed:
        note(f"does not hold: {text}")
    over = device is not None and metrics(data)["peak_rss_bytes"] > device.usable_bytes
    if over and device is not None:
        note(f"does not fit: the peak is more than the {device.usable_bytes} bytes that {device.name} has to give")
    ctx.exit(1 if failed or over else 0)


def parse_seconds(text: str) -> float:
    """ "90s", "5m", "1h", "30" -> seconds.

    Raises:
        InputError: it is no time.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    seconds = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0
    if not seconds:
        raise InputError(f"{text!r} is not a time", hint="for example 90s or 5m")
    return seconds


def _emulated(name: str | None) -> "Device | None":
    """The device to be emulated, its limits set on this process."""
    if name is None:
        return None
    import resource

    from ..catalogue.catalogue import find_sizes

    # Of several sizes of RAM the smallest: what fits there fits them all.
    device = find_sizes(name)[0]
    resource.setrlimit(resource.RLIMIT_DATA, (device.usable_bytes, device.usable_bytes))
    note(
        f"emulating {device.name}: {device.n_cores} threads and {device.usable_bytes >> 20} MiB of memory. "
        "Speed is NOT emulated: the rates below are this machine's."
    )
    return device


def _measure(given: dict[str, Any], sustain_s: float, device: "Device | None") -> dict[str, Any]:
    from ..profile.profile import Request, run_profile

    if given["pack"] and given["base"]:
        raise click.UsageError("Give either --pack or --base.")
    threads = given["threads"]
    if device is not None:
        from ...edge.system.machine import default_threads

        threads = min(threads or device.n_cores, device.n_cores, default_threads())
    return run_profile(
        Request(
            pack=given["pack"],
            base=given["base"],
            adapters=given["adapters"],
            quick=given["quick"],
            threads=threads,
            n_ctx_tokens=given["context"],
            repeats=given["repeats"],
            sustain_s=sustain_s,
            emulated=device.id if device else None,
            ram_bytes=device.usable_bytes if device else None,
        )
    )


def load_schema() -> Any:
    """The published JSON schema."""
    return json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
