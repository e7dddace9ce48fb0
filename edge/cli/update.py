"""`slm-edge update` and `rollback`: packs to their newest version, and back."""

from dataclasses import asdict
from typing import Any, Final

import click

from ..console import emit, json_option, note
from ..errors import InputError, SlmEdgeError
from ..written import human_bytes

# Of `update`, where a new version was tried and is not used
FAILED_EXIT: Final = 5


@click.command()
@click.argument("pack", required=False, metavar="[PACK]")
@click.option("--channel", metavar="ADDRESS", help="The pack's channel: an address or a folder. It is kept.")
@click.option("--check", is_flag=True, help="Say what there is, and take nothing.")
@click.option("--again", is_flag=True, help="Also versions that failed here, or that somebody went back from.")
@json_option
def update(pack: str | None, channel: str | None, check: bool, again: bool, as_json: bool) -> None:
    """Take the newest version of PACK from its channel [default: of every pack that has one].

    What is missing is fetched; signatures and every byte are checked; the new version is loaded and its golden prompts
    answered in a process of its own; then one write makes it the one that runs. Where anything fails, what ran before
    runs on. Exits with 0 if all packs are at their newest, with 5 if a new version failed here.

    \b
    Examples:
      slm-edge update my-pack --channel https://example.com/my-pack/channel.json
      slm-edge update
      slm-edge update my-pack --check
    """
    from ..store.store import Store
    from ..update.update import channels
    from ..update.update import update as take

    if channel is not None and pack is None:
        raise click.UsageError("--channel is of one pack: name it.")
    names = [pack] if pack is not None else channels(Store())
    if not names:
        raise InputError("no pack has an update channel", hint="slm-edge update PACK --channel ADDRESS gives it one")
    outcomes, errors = [], []
    for name in names:
        try:
            outcomes.append(take(name, channel, check_only=check, again=again))
        except SlmEdgeError as error:
            if len(names) == 1:
                raise
            errors.append(error)
            note(f"{name}: {error}")
    lines = [f"{one.name}  {one.version or '-'}  {one.state}{_more(one)}" for one in outcomes]
    emit(
        {"packs": [asdict(one) for one in outcomes], "errors": [one.as_dict() for one in errors]},
        as_json,
        "\n".join(lines),
    )
    if errors:
        raise click.exceptions.Exit(errors[0].exit_code)
    if any(one.state == "failed" for one in outcomes):
        raise click.exceptions.Exit(FAILED_EXIT)


def _more(outcome: Any) -> str:
    words = f": {outcome.offered}" if outcome.state == "available" else ""
    words += f" ({outcome.words})" if outcome.words else ""
    return words + (f", {human_bytes(outcome.fetched_bytes)} fetched" if outcome.fetched_bytes else "")


@click.command()
@click.argument("pack")
@json_option
def rollback(pack: str, as_json: bool) -> None:
    """Go back to the version of PACK before this one, at once. Updates then leave the one that was left alone.

    `slm-edge update PACK --again` takes it after all.

    \b
    Example:
      slm-edge rollback my-pack
    """
    from ..update.update import rollback as back

    outcome = back(pack)
    emit(asdict(outcome), as_json, f"{pack}: {outcome.words}")
