"""Options that several commands share: how an answer is made, how much memory, and what it keeps to."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..engines import ENGINES
from ..errors import InputError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from ..answer.settings import Settings
    from ..grammar.rules import Rules
    from ..options import EngineOptions

Command = TypeVar("Command", bound=Callable[..., Any])


def answer_options(command: Command) -> Command:
    """Adds `--max-tokens`, `--temperature`, `--seed`, `--threads`, `--threads-batch`, `--top-k` and so on."""
    options = (
        click.option(
            "-n",
            "--max-tokens",
            type=click.IntRange(1),
            help="Longest answer in tokens.  [default: the adapter's card]",
        ),
        click.option(
            "--temperature",
            "--temp",
            "temperature",
            type=click.FloatRange(0, 100),
            help="0 always takes the likeliest token.  [default: the adapter's card]",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, (1 << 32) - 2),
            help="Seed of the sampling: the same seed gives the same answer.",
        ),
        click.option("--top-k", type=click.IntRange(0), help="Draw from the K likeliest tokens; 0 for all."),
        click.option("--top-p", type=click.FloatRange(0, 1), help="Draw from the likeliest that add up to P."),
        click.option("--min-p", type=click.FloatRange(0, 1), help="Draw from those with P of the likeliest's chance."),
        click.option(
            "--repeat-penalty",
            type=click.FloatRange(0, 100, min_open=True),
            help="Divides the logits of what the last 64 tokens hold; 1 does nothing.",
        ),
        click.option(
            "--frequency-penalty",
            type=click.FloatRange(-2, 2),
            help="Taken off a token's logit for each time that the answer has it.",
        ),
        click.option(
            "--presence-penalty", type=click.FloatRange(-2, 2), help="Taken off a token's logit once the answer has it."
        ),
        click.option("--stop", multiple=True, metavar="TEXT", help="Text that ends the answer; repeatable."),
        threads_option,
        click.option(
            "--threads-batch",
            type=click.IntRange(1, 512),
            help="CPU threads for the prompt alone.  [default: as --threads]",
        ),
    )
    return _with(options, command)


def _with(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    """The command with options in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def pulled_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Names of what was pulled, for Tab; and whatever files there are."""
    from click.shell_completion import CompletionItem

    from ..store.store import Store

    names = [name for name in ("starter", *Store().names()) if name.startswith(incomplete)]
    return [*(CompletionItem(name) for name in names), CompletionItem(incomplete, type="file")]


def _no_hub_option(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """llama.cpp's option: what to type here."""
    if value is not None:
        raise click.UsageError(f'type slm-edge run hf.co/{value} "Hello"; -m takes hf.co/{value} too.')


class PackType(click.Path):
    """A pack: its folder, or any reference of `slm-edge pull`; the command gets its path."""

    name = "pack"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if isinstance(value, Path) or Path(value).exists() or (ctx is not None and ctx.resilient_parsing):
            return Path(value)
        from ..pack.located import located

        return located(value).path

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        return pulled_names(ctx, param, incomplete)


def model_options(command: Command) -> Command:
    """Adds `--pack`, `--model` and `--lora`, see `source.chosen`."""
    options = (
        click.option(
            "--pack",
            metavar="REF",
            shell_complete=pulled_names,
            help="Folder of a pack, or a reference as of pull.  [default: the starter pack]",
        ),
        click.option(
            "-m",
            "--model",
            metavar="FILE|REF",
            shell_complete=pulled_names,
            help="A GGUF file, or a place on the hub such as hf.co/OWNER/REPO:Q4_K_M.",
        ),
        click.option("-hf", "--hf-repo", hidden=True, expose_value=False, callback=_no_hub_option, help="As -m hf:…"),
        click.option(
            "--lora",
            "loras",
            metavar="FILE[=SCALE]",
            multiple=True,
            help="LoRA adapter in GGUF form for --model, with its strength; repeatable.",
        ),
    )
    return _with(options, command)


def context_option(what: str) -> Callable[[Command], Command]:
    """Adds `--context`, passed as `context_tokens`; `what` has so many."""
    names = ("-c", "--context", "--ctx-size", "context_tokens")
    return click.option(*names, type=click.IntRange(1), help=f"{what}, in tokens.  [default: 2048]")


def threads_option(command: Command) -> Command:
    """Adds `--threads`, passed as a number or None."""
    help = (
        "CPU threads.  [default: one for each fast physical core, fewer while other processes want the CPUs; for "
        "single tokens fewer on a Raspberry Pi 5]"
    )
    return click.option("-t", "--threads", type=click.IntRange(1, 512), help=help)(command)


def special_option(command: Command) -> Command:
    """Adds `--allow-special`, a flag."""
    help = "Read special tokens such as <|im_end|> in what is said; else they are plain text."
    return click.option("--allow-special", is_flag=True, help=help)(command)


def engine_option(command: Command) -> Command:
    """Adds `--engine`, passed as "llama" or "onnx"."""
    help = "llama.cpp, or onnxruntime with the pack's ONNX form."
    kind = click.Choice(list(ENGINES))
    return click.option("--engine", type=kind, default="llama", show_default=True, help=help)(command)


def data_option(help: str, *, required: bool = False) -> Callable[[Command], Command]:
    """Adds `--data`, the folder of the public data sets, which the environment may name; passed as a path or None."""
    kind = click.Path(path_type=Path)
    return click.option("--data", type=kind, envvar="SLM_EDGE_DATA", show_envvar=True, required=required, help=help)


def session_options(command: Command) -> Command:
    """Adds `--speculate`, `--ram` and `--adapter-budget`; sizes are passed as text, see `size_bytes_of`."""
    options = (
        click.option(
            "--speculate",
            type=click.Choice(["off", "exact", "fast"]),
            help="Speculative decoding from the prompt's own words. exact: only if the result is bit-identical; fast: "
            "near ties may differ.  [default: the adapter's card]",
        ),
        click.option(
            "--ram",
            metavar="SIZE",
            help="Memory limit, e.g. 900M. Load mode, context and KV type are chosen to fit; exits with 4 if nothing "
            "fits.  [default: the limit of the process, if any]",
        ),
        click.option(
            "--adapter-budget",
            metavar="SIZE",
            help="Memory limit for loaded adapters (file sizes), e.g. 40M; the least recently used is unloaded.  "
            "[default: no limit but --ram]",
        ),
    )
    return _with(options, command)


def grammar_options(command: Command) -> Command:
    """Adds `--schema`, `--grammar`, `--regex` and `--lark`, of which `grammar_rules` takes one."""
    file = click.Path(path_type=Path)
    options = (
        click.option("--schema", metavar="FILE|JSON", help="JSON schema that the answer must match."),
        click.option("--grammar", type=file, metavar="FILE", help="GBNF grammar that the answer must match."),
        click.option("--regex", metavar="TEXT", help="Regular expression that the whole answer must match."),
        click.option("--lark", type=file, metavar="FILE", help="Lark grammar that the answer must match."),
    )
    return _with(options, command)


template_arg_option = click.option(
    "--template-arg",
    "template_args",
    metavar="NAME=VALUE",
    multiple=True,
    help="What the chat template is told besides; VALUE is JSON or a text; repeatable.",
)
think_option = click.option(
    "--think/--no-think", default=None, help="Let the model think before it answers.  [default: its template's]"
)


def template_options(command: Command) -> Command:
    """Adds `--think`, `--tools`, `--documents`, `--date` and `--template-arg`, see `template_args_of`."""
    file = click.Path(path_type=Path)
    options = (
        think_option,
        click.option("--tools", type=file, metavar="FILE", help="JSON list of tools, as the chat template takes them."),
        click.option("--documents", type=file, metavar="FILE", help="JSON list of documents, for templates with them."),
        click.option("--date", metavar="YYYY-MM-DD", help="The day that the chat template takes for today."),
        template_arg_option,
    )
    return _with(options, command)


def named_values(texts: Sequence[str]) -> dict[str, Any]:
    """The values of `--template-arg`; InputError for one that is not NAME=VALUE."""
    from ..files.read import loads_json

    told: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--template-arg takes NAME=VALUE, not {text!r}")
        if value in ("True", "False", "None"):
            raise InputError(f"--template-arg {text}: the value is JSON", hint="write true, false or null")
        try:
            told[name] = loads_json(value)
        except (ValueError, RecursionError):
            told[name] = value
    return told


def template_args_of(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """What these options tell the chat template; None for nothing.

    Raises:
        InputError: a file or a value that is not of its form.
    """
    if not given["template_args"] and all(given[name] is None for name in ("tools", "documents", "date", "think")):
        return None
    from ..files.read import loads_json, read_text
    from ..gguf.template_arguments import MOST_ARGUMENT_BYTES, checked_arguments

    told = named_values(given["template_args"])
    for name in ("tools", "documents"):
        path = given[name]
        if path is not None:
            try:
                told[name] = loads_json(read_text(path, MOST_ARGUMENT_BYTES))
            except (ValueError, RecursionError) as error:
                raise InputError(f"is not valid JSON ({error})", where=path) from None
            if not isinstance(told[name], list):
                raise InputError(f"is no JSON list of {name}", where=path)
    told |= {name: given[name] for name in ("date", "think") if given[name] is not None}
    return checked_arguments(told)


def engine_options_of(given: Mapping[str, Any]) -> "EngineOptions":
    """How a session is opened, by what the options above passed to a command; InputError for a size that is none."""
    return {
        "n_ctx_tokens": given["context_tokens"],
        "threads": given["threads"],
        "threads_batch": given["threads_batch"],
        "ram_bytes": size_bytes_of(given["ram"]),
        "adapter_budget_bytes": size_bytes_of(given["adapter_budget"]),
        "speculate": given["speculate"],
        "allow_special": given["allow_special"],
    }


def settings_of(given: Mapping[str, Any]) -> "Settings":
    """How answers are made, by the same; errors as `grammar_rules`."""
    return {
        "max_tokens": given["max_tokens"],
        "temperature": given["temperature"],
        "seed": given["seed"],
        "top_k": given["top_k"],
        "top_p": given["top_p"],
        "min_p": given["min_p"],
        "repeat_penalty": given["repeat_penalty"],
        "frequency_penalty": given["frequency_penalty"],
        "presence_penalty": given["presence_penalty"],
        "stop": given["stop"] or None,
        "grammar": grammar_rules(given["schema"], given["grammar"], given["regex"], given["lark"]),
        "template_args": template_args_of(given),
    }


def size_bytes_of(size: str | None) -> int | None:
    """The size of `--ram` or `--adapter-budget` in bytes; InputError if it is none."""
    if size is None:
        return None
    from ..written import parse_bytes

    return parse_bytes(size)


def grammar_rules(schema: str | None, grammar: Path | None, regex: str | None, lark: Path | None) -> "Rules | None":
    """What `--schema`, `--grammar`, `--regex` or `--lark` says; None: as the task card says.

    Raises:
        InputError: a file that cannot be read or used.
    """
    given = [value for value in (schema, grammar, regex, lark) if value is not None]
    if not given:
        return None
    if len(given) > 1:
        raise click.UsageError("--schema, --grammar, --regex, --lark: use one of them.")
    from ..grammar import rules

    if schema is not None:
        is_json = schema.lstrip().startswith("{")
        return rules.schema_text(schema, "--schema") if is_json else rules.read_schema(schema)
    if regex is not None:
        return rules.regex_grammar(regex)
    return rules.read_grammar(grammar) if grammar is not None else rules.read_lark(lark or Path())
