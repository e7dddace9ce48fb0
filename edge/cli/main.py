"""The command line: a table of commands, each imported when it is used.

`slm-edge --help` imports click and nothing else of weight; a command's module is found by its row in `COMMANDS`.
"""

import json
import os
import signal
import sys
from importlib import metadata

import click

from ..errors import DoesNotFitError, SlmEdgeError
from ..llama import binding as llama
from .lazy import Entry, LazyGroup

COMMANDS: dict[str, Entry] = {
    "run": Entry("edge.cli.run:run", "Answer a prompt with a task adapter."),
    "chat": Entry("edge.cli.chat:chat", "Talk with the model, changing adapters as you go."),
    "demo": Entry("edge.cli.demo:demo", "See the starter pack's adapters at work."),
    "pull": Entry("edge.cli.pull:pull", "Fetch a pack's base model into the cache."),
    "pack": Entry("edge.cli.pack:pack", "Build, change, show and verify packs."),
    "router": Entry("edge.cli.router:router", "Choose the adapter by the prompt: train, measure, teach."),
    "export": Entry("export.cli.group:export", "Turn checkpoints and PEFT adapters into GGUF files.", "export"),
    "train": Entry("train.cli.group:train", "Train a task adapter.", "train"),
    "profile": Entry("devices.cli.profile:profile", "Measure speed and memory on this device."),
    "devices": Entry("devices.cli.devices:devices", "Say what a model will need and do on a device."),
    "bench": Entry("benchmarks.cli.group:bench", "Score a pack on public test sets.", "bench"),
}


@click.group(
    cls=LazyGroup,
    entries=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(metadata.version("slm-edge"), prog_name="slm-edge")
def cli() -> None:
    """Small language models with task adapters, on your own device.

    \b
    Example:
      slm-edge run --adapter math "A box has 12 eggs. 5 are used. How many are left?"
    """


def _show(error: SlmEdgeError) -> int:
    """Shows the error; returns its exit code."""
    if "--json" in sys.argv:
        click.echo(json.dumps({"error": error.as_dict()}, ensure_ascii=False))
    click.echo(f"slm-edge: {error}", err=True)
    return error.exit_code


def _is_full(error: OSError) -> bool:
    from ..files.aside import is_full

    return is_full(error)


def main() -> None:
    """Runs the command line and ends the process with the exit codes of `edge.errors`.

    Click's standalone mode is off, so that every error has one way out: one message, no traceback.
    """
    try:
        # A service manager's SIGTERM cleans up as Ctrl-C does. Who starts us with Ctrl-C ignored (nohup) means it.
        signal.signal(signal.SIGTERM, llama.interrupt)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, llama.interrupt)
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as leave:
        code = leave.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped", err=True)
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except SlmEdgeError as error:
        code = _show(error)
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted; the interpreter must not complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if llama.stop_asked:
            click.echo("stopped", err=True)
            code = 130
        elif isinstance(error, OSError) and _is_full(error):
            code = _show(DoesNotFitError(f"a file cannot be written ({error.strerror})", where=error.filename))
        else:
            raise
    if llama.stop_asked and code:
        code = 130
    sys.exit(code if isinstance(code, int) else 0)
