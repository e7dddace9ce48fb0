"""`slm-edge bench scores`: the score matrix, tasks x adapters, through the runtime that users run."""

import dataclasses
import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...edge.cli.options import (
    PackType,
    data_option,
    engine_option,
    named_values,
    template_arg_option,
    think_option,
    threads_option,
)
from ...edge.console import emit, json_option, note
from ..tasks.registry import DEFAULT, MODULES, task

if TYPE_CHECKING:
    from ...edge.options import EngineOptions
    from ...edge.pack.pack import Pack
    from ..scores.answers import Record
    from ..scores.cells import Cell
    from ..scores.runner import Generate
    from ..tasks.benchmark import Benchmark, Decoding

DEFAULT_PARALLEL = 16


def _part_of(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int]:
    """ "2/3" -> (2, 3); nothing: the only part."""
    if value is None:
        return 1, 1
    number, slash, of = value.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise click.BadParameter(f"{value!r} is not like 2/3, the second of three parts")
    return int(number), int(of)


@click.command()
@click.argument("tasks", nargs=-1, type=click.Choice(list(MODULES)), metavar="[TASK]...")
@click.option("--pack", "pack_folder", type=PackType(), help="Pack to measure.  [default: the starter]")
@click.option(
    "--adapter", "names", multiple=True, metavar="NAME|none|each|auto", help="May be given again.  [default: each]"
)
@engine_option
@click.option("--endpoint", metavar="URL", help="Measure a server with the OpenAI API instead of a pack.")
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="Model of the endpoint; repeatable, one column each."
)
@click.option("--limit", type=click.IntRange(1), help="Items of each cell, a fixed random sample.  [default: all]")
@click.option("--limit-others", type=click.IntRange(0), help="Items for adapters made for another task; 0: none.")
@data_option("Folder with gsm8k/, mbpp/, dolly/, svamp/, …; docs/benchmarks.md lists its files.", required=True)
@click.option("--samples", type=click.IntRange(1), help="Samples of each problem of humaneval and mbpp.")
@click.option("--temperature", type=click.FloatRange(0, 10), help="Temperature of the samples; 0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Of these answers.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of these answers.")
@click.option(
    "--parallel",
    type=click.IntRange(1, 256),
    default=DEFAULT_PARALLEL,
    show_default=True,
    help="Answers computed at once.",
)
@threads_option
@click.option("--max-tokens", type=click.IntRange(1), help="Longest answer.  [default: each task's own]")
@think_option
@template_arg_option
@click.option("--part", metavar="K/N", callback=_part_of, help="Measure the K-th of N parts; see join-answers.")
@click.option("--allow-unsafe", is_flag=True, help="Run the model's code even where this system cannot confine it.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("bench"),
    show_default=True,
    help="Folder for answers and report.",
)
@click.option("--report-only", is_flag=True, help="Make no new answers; report those in --out.")
@click.option("--rescore", is_flag=True, help="Score the answers in --out again by today's rules.")
@json_option
def scores(
    tasks: tuple[str, ...],
    pack_folder: Path | None,
    names: tuple[str, ...],
    engine: str,
    endpoint: str | None,
    models: tuple[str, ...],
    limit: int | None,
    limit_others: int | None,
    data: Path,
    samples: int | None,
    temperature: float | None,
    top_p: float | None,
    seed: int,
    parallel: int,
    threads: int | None,
    max_tokens: int | None,
    think: bool | None,
    template_args: tuple[str, ...],
    part: tuple[int, int],
    allow_unsafe: bool,
    out: Path,
    report_only: bool,
    rescore: bool,
    as_json: bool,
) -> None:
    """Score a pack's adapters and its base on public test sets (default: gsm8k, mbpp, dolly, svamp).

    Answers are greedy and computed in batches; humaneval draws 20 for each problem. Each score has its number of items
    and a 95 % interval, each adapter is compared with the base on the same items, and "auto" is what the pack's router
    chooses. humaneval and mbpp run what the model wrote, in a sandbox.

    Every answer is written to --out as it comes. The same command continues where it stopped, killed or not, and
    measures only what is new; packed answers (`bench pack-answers`) are read too. Several processes or machines share
    the work: each measures its --part into an --out of its own, then `slm-edge bench join-answers` joins them.

    --out gets report.json, report.md, report.html, scores.json (for task cards), answers/ and samples/.

    \b
    Examples:
      slm-edge bench --data DATA --out bench
      slm-edge bench gsm8k svamp --adapter math --adapter none --limit 200 --data DATA
      slm-edge bench humaneval --samples 1 --temperature 0 --adapter each --adapter auto --data DATA
      slm-edge bench hellaswag --adapter none --engine onnx --data DATA
      slm-edge bench hellaswag --part 2/3 --threads 1 --data DATA --out part2
      slm-edge bench gsm8k --endpoint http://localhost:8000/v1 --model my-lora --data DATA
    """
    from ...edge.pack.pack import Pack
    from ..scores.cells import Wanted, columns_of, plan

    is_part = part != (1, 1)
    if is_part and (report_only or rescore):
        raise click.UsageError("--part measures; --report-only and --rescore take all answers that are there")
    chosen = [task(name) for name in dict.fromkeys(tasks or DEFAULT)]
    told = named_values(template_args) | ({} if think is None else {"think": think})
    decoding = _decoding(chosen, samples, temperature, top_p)
    wanted = Wanted(limit, limit_others, max_tokens, decoding, seed, part, told)
    pack = None if endpoint is not None else Pack.open(pack_folder)
    if pack is not None and not report_only:
        # What answers are told by takes in the prompt, and so the base's template
        pack.base_path(allow_pull=True)
    cells = plan(chosen, pack, _columns(pack, pack_folder, names, engine, endpoint, models, chosen), data, wanted)
    command = _command(tasks, names, models, wanted, engine, endpoint)

    def report(path: Path) -> dict[str, Any]:
        if is_part:
            # A score counts answers from the first item on, of which a part has every so many
            return {"part": list(part), "folder": str(path)}
        return _write_report(cells, path, _about(pack, engine, endpoint, cells, path, wanted.day), command)

    if not report_only or rescore:
        _check_code(cells, allow_unsafe)
    if rescore:
        _rescore(cells, out)
    if not report_only:
        if pack is not None:
            each: list[Cell] = []
            if any(cell.column.is_auto for cell in cells):
                # It takes over what adapters have answered, in whichever run that was
                every = dataclasses.replace(wanted, limit_others=None)
                each = plan(chosen, pack, columns_of(pack, ("each",), engine), data, every)
            _measure_pack(cells, each, out, pack, engine, parallel, threads, report, wanted.day)
        else:
            assert endpoint is not None
            from ..scores.endpoint import Endpoint, endpoint_generator

            server = Endpoint.of(endpoint, parallel)
            note(f"{endpoint} serves {', '.join(server.models()) or 'no model that it names'}")
            _measure(cells, out, endpoint_generator(server), report)
    from ..report.text import markdown

    data_out = report(out)
    where = f"part {part[0]} of {part[1]} is in {out}; all together: slm-edge bench join-answers PART… -o OUT"
    emit(data_out, as_json, where if is_part else markdown(data_out))


def _decoding(
    tasks: "Sequence[Benchmark]", samples: int | None, temperature: float | None, top_p: float | None
) -> "Decoding | None":
    """The user's way of drawing; what is left out is as the first task that takes samples has it."""
    from ..tasks.benchmark import Decoding

    if samples is None and temperature is None and top_p is None:
        return None
    own = next((task.decoding for task in tasks if task.takes_samples), Decoding())
    if temperature is None:
        temperature = own.temperature
    if samples is None:
        samples = own.samples if temperature else 1
    return Decoding(samples, temperature, own.top_p if top_p is None else top_p)


def _columns(
    pack: "Pack | None",
    pack_folder: Path | None,
    names: Sequence[str],
    engine: str,
    endpoint: str | None,
    models: Sequence[str],
    tasks: "Sequence[Benchmark]",
) -> list[Any]:
    from ...edge.errors import InputError, UnsupportedError
    from ..scores.cells import Column, columns_of

    if pack is not None:
        if models:
            raise InputError("--model names a model of --endpoint, which is not given")
        return columns_of(pack, names, engine)
    if not models:
        raise InputError(
            "--endpoint needs the name of a model", hint="--model NAME; the server's /v1/models lists them"
        )
    if names or pack_folder is not None or engine != "llama":
        raise InputError(
            "--pack, --adapter and --engine are for packs; an endpoint's adapters are its models", hint="--model NAME"
        )
    if unfit := [task.name for task in tasks if task.way != "answers"]:
        raise UnsupportedError(
            f"{', '.join(unfit)}: likelihoods of given endings are not in the OpenAI API; measure a pack"
        )
    return [Column(model, facts={"endpoint_model": model}) for model in dict.fromkeys(models)]


def _about(
    pack: "Pack | None", engine: str, endpoint: str | None, cells: "Sequence[Cell]", out: Path, day: datetime.date
) -> dict[str, Any]:
    from ..report.report import about_pack
    from ..scores.answers import AnswerFile

    if pack is not None:
        return about_pack(pack, engine, day)
    served: dict[str, None] = {}
    for cell in cells:
        with AnswerFile(out / "answers", cell.identity) as answers:
            served |= {record.by: None for record in answers.records.values() if record.by is not None}
    return {"endpoint": {"url": endpoint, "served_by": list(served)}}


def _check_code(cells: "Sequence[Cell]", allow_unsafe: bool) -> None:
    """Refuses before anything is asked where the model's code could not be confined.

    Raises:
        UnsupportedError: a layer of the sandbox is missing and `allow_unsafe` is not set.
    """
    if not any(cell.task.runs_code for cell in cells):
        return
    from ..sandbox import sandbox as code_sandbox

    code_sandbox.allow_unsafe(allow_unsafe)
    code_sandbox.run_program("", ["pass"])
    if missing := code_sandbox.missing_layers():
        note(f"warning: this system does not confine the code under test in: {', '.join(missing)}")


def _rescore(cells: "Sequence[Cell]", out: Path) -> None:
    from ..scores.runner import rescore_cell

    for cell in cells:
        note(f"{cell.label}: {rescore_cell(cell, out / 'answers')} answers have other scores now")


def _measure_pack(
    cells: "Sequence[Cell]",
    each: "Sequence[Cell]",
    out: Path,
    pack: "Pack",
    engine: str,
    parallel: int,
    threads: int | None,
    report: Callable[[Path], object],
    day: datetime.date,
) -> None:
    from ...devices.machine.sensors import Sensors
    from ...edge.engines import open_session
    from ...edge.system.machine import default_decode_threads, default_threads
    from ..scores.answers import AnswerFile
    from ..scores.energy import Joules
    from ..scores.generate import session_generator

    identities = {(cell.task.name, cell.adapter_name): cell.identity for cell in each}

    def known(task_name: str, adapter: str | None) -> "Mapping[str, Record]":
        identity = identities.get((task_name, adapter))
        return {} if identity is None else AnswerFile(out / "answers", identity).records

    setup: EngineOptions = {"threads": threads}
    if threads is None and engine == "llama":
        # Numbers that stay as they are: scores must not depend on who else uses the machine.
        setup = {"threads": default_decode_threads(), "threads_batch": default_threads()}
    opened = open_session(pack, engine, allow_pull=True, **setup)
    with opened as session, Joules(Sensors()) as joules:
        # A run that goes on past midnight asks the same prompts
        session.template.fix_date(day)
        _measure(cells, out, session_generator(session, parallel, known), report, joules.totals)


def _measure(
    cells: "Sequence[Cell]",
    out: Path,
    generate: "Generate",
    report: Callable[[Path], object],
    joules: Callable[[], "Mapping[str, float]"] = dict,
) -> None:
    """Measures all cells; the report is written after each, so that a stop leaves what there is."""
    from ...edge.files.atomic import make_folder
    from ..scores.runner import run_cell

    make_folder(out / "answers")
    try:
        for cell in cells:
            asked = run_cell(cell, out / "answers", generate, joules)
            report(out)
            note(f"{cell.label}: {len(cell.wanted)} answers, {asked} of them new")
    except KeyboardInterrupt:
        report(out)
        note(f"stopped; {out} has what was measured, and the same command goes on from there")
        raise


def _command(
    tasks: Sequence[str], names: Sequence[str], models: Sequence[str], wanted: Any, engine: str, endpoint: str | None
) -> str:
    """What was measured, as a command; folders, which say nothing to others, are left out."""
    words = ["slm-edge bench", *tasks, *(f"--adapter {name}" for name in names)]
    if engine != "llama":
        words += [f"--engine {engine}"]
    if endpoint is not None:
        words += ["--endpoint URL", *(f"--model {model}" for model in models)]
    options = {
        "--limit": wanted.limit,
        "--limit-others": wanted.limit_others,
        "--max-tokens": wanted.max_tokens,
        "--seed": wanted.seed or None,
    }
    if wanted.decoding is not None:
        drawn = wanted.decoding
        options |= {"--samples": drawn.samples, "--temperature": drawn.temperature, "--top-p": drawn.top_p}
    words += [f"{option} {value}" for option, value in options.items() if value is not None]
    words += [f"--template-arg {name}={json.dumps(value)}" for name, value in wanted.template_args.items()]
    return " ".join(words)


def _write_report(cells: "Sequence[Cell]", out: Path, about: dict[str, Any], command: str) -> dict[str, Any]:
    from ...edge.files.atomic import atomic_file, make_folder, write_json
    from ..report.html import html
    from ..report.report import card_scores, make_report
    from ..report.samples_file import write_samples
    from ..report.text import markdown

    made_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    data = make_report(cells, make_folder(out) / "answers", about, made_at=made_at, command=command)
    write_json(out / "report.json", data)
    write_json(out / "scores.json", card_scores(data))
    for name, text in (("report.md", markdown(data)), ("report.html", html(data))):
        with atomic_file(out / name) as aside:
            aside.write_text(text, encoding="utf-8")
    for cell in cells:
        if cell.task.name.startswith("humaneval"):
            write_samples(cell, out)
    return data
