"""The command line as a page: what every `--help` says, in the order in which one meets it.

    python -m slm_edge.edge.cli.pages > docs/cli.md

Needs every extra, because a command's options are known only when its module is imported.
"""

from collections.abc import Iterator
from typing import Any, Final

import click

WIDTH: Final = 100
HEAD: Final = """\
# Commands

Written by `python -m slm_edge.edge.cli.pages > docs/cli.md` from what `--help` says. Results go to stdout, notes and
progress to stderr; exit codes are in [reference](reference.md#exit-codes).
"""


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, str, int]]:
    """Each command below one, and itself: what one types, what `--help` prints, and how deep it is."""
    depth = context.command_path.count(" ")
    yield context.command_path, command.get_help(context), depth
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from commands(below, _context(below, name, context))


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    settings: dict[str, Any] = {**command.context_settings, "terminal_width": WIDTH}
    return click.Context(command, parent, info_name=name, **settings)


def page() -> str:
    """The whole page as Markdown."""
    from .main import cli

    parts = [HEAD]
    found = list(commands(cli, _context(cli, "slm-edge")))
    parts.append("\n".join(f"{'  ' * depth}- [{path}](#{path.replace(' ', '-')})" for path, _, depth in found) + "\n")
    parts += [f"{'#' * (min(depth, 1) + 2)} {path}\n\n```text\n{text}\n```\n" for path, text, depth in found]
    return "\n".join(parts)


if __name__ == "__main__":
    click.echo(page(), nl=False)
