"""`slm-edge bench pack-answers`: the answers of a run as small archives, to keep them or to go on elsewhere."""

from pathlib import Path

import click

from ..edge.console import emit, json_option


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
    from ..edge.console import human_bytes
    from ..edge.errors import InputError
    from ..edge.files import atomic_file, make_folder
    from .answers import archive_path, packed, parsed, unpacked

    source = folder / "answers" if (folder / "answers").is_dir() else folder
    files = sorted(source.glob("*.jsonl"))
    if not files:
        raise InputError("there are no answers (*.jsonl)", where=source, hint="name the --out of a `slm-edge bench`")
    dest = source if output is None else make_folder(output / "answers")
    rows = []
    for file in files:
        data = file.read_bytes()
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
    emit({"folder": str(dest), "files": rows}, as_json, "\n".join(lines))
