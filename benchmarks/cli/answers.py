"""`slm-edge bench pack-answers` and `join-answers`: what to do with the answers of runs: keep, move, put together."""

from pathlib import Path
from typing import Any

import click

from ...edge.console import emit, json_option


@click.command("pack-answers")
@click.argument("folder", metavar="OUT", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write to.  [default: OUT]")
@json_option
def pack_answers(folder: Path, output: Path | None, as_json: bool) -> None:
    """Compress the answers of a run: OUT is the --out of `slm-edge bench`, or its folder of answers.

    Each answers/TASK.ADAPTER.HASH.jsonl is checked and written as .jsonl.xz into answers/ of the output. `bench` with
    that output as --out reports them and goes on from them, asking only what is missing. They hold item ids, the
    model's own texts, scores and counts; of the data only what a model repeated of its prompt.

    \b
    Example:
      slm-edge bench pack-answers bench -o kept
      slm-edge bench --report-only --data DATA --out kept
    """
    from ...edge.errors import InputError
    from ...edge.files.atomic import atomic_file, make_folder
    from ...edge.files.read import read_bytes
    from ...edge.written import human_bytes
    from ..scores.answers import answer_places, answers_below, archive_path, packed, parsed, unpacked

    files = [place for place in answer_places(folder) if place.suffix == ".jsonl"]
    dest = answers_below(folder) if output is None else make_folder(output / "answers")
    rows = []
    for file in files:
        data = read_bytes(file)
        identity, records, _ = parsed(data, file)
        if identity is None:
            continue
        archive = archive_path(dest / file.name)
        there = parsed(unpacked(archive), archive)[1] if archive.exists() else []
        if lost := {record.id for record in there} - {record.id for record in records}:
            raise InputError(
                f"holds {len(lost)} answers that {file} lacks",
                where=archive,
                hint="go on from it (--out), or remove it first",
            )
        with atomic_file(archive) as aside:
            aside.write_bytes(packed(data))
        sizes = {"bytes": len(data), "packed_bytes": archive.stat().st_size}
        cell = {"task": identity["task"], "adapter": identity["adapter"], "n": len(records)}
        rows.append({**cell, "file": archive.name, **sizes})
    lines = [
        f"{row['file']}: {row['n']} answers, {human_bytes(row['bytes'])} as {human_bytes(row['packed_bytes'])}"
        for row in rows
    ]
    emit({"folder": str(dest), "files": rows}, as_json, "\n".join(lines or ["all answers are packed already"]))


@click.command("join-answers")
@click.argument("folders", metavar="OUT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The --out that gets them all.")
@json_option
def join_answers(folders: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Put the answers of several runs together: of parts (`slm-edge bench --part`), or of machines.

    Each OUT is the --out of a `slm-edge bench`, or its folder of answers, packed or not. Answers of the same task,
    adapter, prompts and settings are joined; an item that has an answer in the output, or in an OUT named before, keeps
    it. Seconds of all runs add up, as if one had run after the other.

    \b
    Example:
      slm-edge bench hellaswag --part 1/2 --threads 1 --data DATA --out part1 &
      slm-edge bench hellaswag --part 2/2 --threads 1 --data DATA --out part2 & wait
      slm-edge bench join-answers part1 part2 -o bench
      slm-edge bench hellaswag --data DATA --out bench
    """
    from ...edge.files.atomic import make_folder
    from ..scores.answers import answer_places, content, held, joined, parsed

    # All are looked at before anything is written
    read = [parsed(content(place), place)[:2] for folder in folders for place in answer_places(folder)]
    dest = make_folder(output / "answers")
    rows: dict[str, dict[str, Any]] = {}
    for identity, records in read:
        if identity is None:
            continue
        with held(dest, identity, identity["task"]) as answers:
            after = joined(answers.records.values(), records)
            n_joined = len(after) - len(answers.records)
            if n_joined:
                answers.replace(after)
        name = answers.path.name
        row = rows.setdefault(name, {"file": name, "task": identity["task"], "adapter": identity["adapter"]})
        row |= {"n": len(after), "n_joined": row.get("n_joined", 0) + n_joined}
    lines = [f"{row['file']}: {row['n']} answers, {row['n_joined']} of them joined now" for row in rows.values()]
    emit({"folder": str(dest), "files": list(rows.values())}, as_json, "\n".join(lines))
