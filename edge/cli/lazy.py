"""Groups of commands, each imported when it is used; a missing package is an error that names the extra to install."""

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import click

from ..errors import SlmEdgeError
from ..written import nearest


@dataclass(frozen=True)
class Entry:
    """Where a command lives: `module:attribute` below slm_edge, its line in `--help`, the extra that it needs."""

    target: str
    help: str
    extra: str | None = None


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used, from a table of entries.

    Args:
        entries: name -> where it lives.
        synonyms: a word that other tools have for a command -> what to type here.
    """

    def __init__(
        self,
        *args: Any,
        entries: Mapping[str, Entry] | None = None,
        synonyms: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.entries = dict(entries or {})
        self.synonyms = dict(synonyms or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.entries, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.entries.get(cmd_name)
        if entry is None:
            return super().get_command(ctx, cmd_name)
        module, attribute = entry.target.split(":")
        with missing_extra(entry.extra):
            command = getattr(importlib.import_module(f"slm_edge.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
            name = args[0]
            if name in self.synonyms:
                ctx.fail(f"There is no command {name!r}: {self.synonyms[name]}")
            near = nearest(name, self.list_commands(ctx))
            meant = f"did you mean {near}?" if near else f"{ctx.command_path} --help lists what there is."
            ctx.fail(f"There is no command {name!r}; {meant}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        name = ctx._protected_args[0] if ctx._protected_args else None
        entry = self.entries.get(name) if name else None
        with missing_extra(entry.extra if entry else None):
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Click's own would import every command for its first line.
        rows = [(name, entry.help) for name, entry in self.entries.items()]
        for name in super().list_commands(ctx):
            command = super().get_command(ctx, name)
            rows.append((name, command.get_short_help_str() if command else ""))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@contextlib.contextmanager
def missing_extra(extra: str | None) -> Iterator[None]:
    """Turns a missing optional package into the line that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        from ..extras import EXTRA_OF_PACKAGE, extra_hint

        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF_PACKAGE:
            raise
        raise SlmEdgeError(
            f"this command needs the package {package!r}, which is not installed",
            hint=extra_hint(extra or EXTRA_OF_PACKAGE[package]),
        ) from None
