"""`slm-edge serve`: one base, many adapters, many clients, over OpenAI's protocol; and what asks those that run."""

import contextlib
import os
import sys
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import emit, harmless, json_option, note, waiting
from ..errors import InputError, SlmEdgeError
from ..files.read import read_text
from ..serve.running import LOAD_S, ask, chosen_server, servers, view
from ..written import human_bytes, nearest
from .options import engine_option, pulled_names, size_bytes_of, special_option, threads_option

if TYPE_CHECKING:
    from ..options import EngineOptions
    from ..scheduler.engine import Engine
    from ..serve.server import Server, Setup
    from .source import Source

DEFAULT_PORT = 8090
# What is done once, or says how the command line itself is read
_NOT_CONFIGURED = ("config", "new-key", "scope", "json", "help")


@click.command()
@click.argument("model", metavar="[PACK]", required=False, shell_complete=pulled_names)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _, path: _configure(ctx, path),
    help="TOML file with these options by their names; what the command line says goes first.",
)
@click.option("--lora", "loras", metavar="FILE", multiple=True, help="LoRA adapter for a GGUF file; repeatable.")
@click.option("--host", "hosts", multiple=True, help="Address to listen on; repeatable.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help=f"Port; 0 for any.  [default: {DEFAULT_PORT}]")
@click.option("--unix", type=click.Path(path_type=Path), help="Unix socket to listen on; alone unless --host is given.")
@click.option(
    "--keys",
    type=click.Path(path_type=Path),
    help="File of keys; needed to listen beyond this machine.  [default: systemd's credential slm-edge-keys, if any]",
)
@click.option("--new-key", metavar="NAME", help="Make a key, add its hash to --keys, print it once, and end.")
@click.option(
    "--scope",
    "scopes",
    metavar="SCOPE",
    multiple=True,
    help="What --new-key is for: models:* or models:math,auto, metrics, admin; repeatable.  [default: models:*]",
)
@click.option("--insecure-no-auth", is_flag=True, help="Listen beyond this machine without keys.")
@click.option(
    "--max-wait",
    "max_wait_s",
    type=click.FloatRange(min=0, min_open=True),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="Refuse a request that would wait longer, with the time to come back.",
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Answers computed side by side; each takes memory for its context.",
)
@click.option(
    "--exact",
    is_flag=True,
    help="Keep only what is bit for bit what computing anew gives; else answers and short beginnings are kept "
    "too, and near ties may differ.",
)
@click.option("-c", "--context", "context_tokens", type=click.IntRange(1), help="Longest prompt and answer, in tokens.")
@threads_option
@engine_option
@click.option("--ram", metavar="SIZE", help="Memory limit, e.g. 900M; exits with 4 if nothing fits.")
@click.option("--adapter-budget", metavar="SIZE", help="Memory limit for loaded adapters, e.g. 40M.")
@click.option(
    "--alias", "aliases", metavar="NAME=MODEL", multiple=True, help="Another name, as gpt-4o-mini=auto; repeatable."
)
@click.option("--allowed-host", "allowed_hosts", multiple=True, help="Host name that clients use for it; repeatable.")
@click.option(
    "--cors-origin",
    "origins",
    metavar="URL",
    multiple=True,
    help="Web page that may use it from a browser.",
)
@click.option(
    "--drain",
    "drain_s",
    type=click.FloatRange(0),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="How long answers may take to their end after SIGTERM.",
)
@click.option("--strict", is_flag=True, help="Refuse fields that are not known, instead of naming them in a header.")
@click.option("--metrics-names", type=click.Choice(["vllm"]), help="Have vLLM's names in /metrics too, beside ours.")
@click.option("--json-log", is_flag=True, help="Write a JSON line for each request to stderr, without what was said.")
@special_option
@json_option
def serve(
    model: str | None,
    loras: tuple[str, ...],
    hosts: tuple[str, ...],
    port: int | None,
    unix: Path | None,
    keys: Path | None,
    new_key: str | None,
    scopes: tuple[str, ...],
    insecure_no_auth: bool,
    max_wait_s: float,
    parallel: int,
    exact: bool,
    context_tokens: int | None,
    threads: int | None,
    engine: str,
    ram: str | None,
    adapter_budget: str | None,
    aliases: tuple[str, ...],
    allowed_hosts: tuple[str, ...],
    origins: tuple[str, ...],
    drain_s: float,
    strict: bool,
    json_log: bool,
    metrics_names: str | None,
    allow_special: bool,
    as_json: bool,
) -> None:
    """Serve a pack to OpenAI clients: its base, each adapter and "auto" are models.

    PACK is a pack's folder or a GGUF file; left out: the starter pack. Only this machine reaches the server unless
    --host says otherwise, which needs --keys. docs/serve.md shows clients, keys, limits and metrics.

    \b
    Examples:
      slm-edge serve
      slm-edge serve my-pack --alias gpt-4o-mini=auto
      slm-edge serve --keys keys.txt --new-key alice
      slm-edge serve --keys keys.txt --host 0.0.0.0 --allowed-host pi.local
      slm-edge serve --config serve.toml
    """
    from ..serve import keys as key_file

    if new_key is not None:
        if keys is None:
            raise click.UsageError("--new-key needs --keys FILE, where its hash is kept.")
        secret = key_file.new_key(keys, new_key, scopes)
        emit({"name": new_key, "key": secret, "file": str(keys)}, as_json, secret)
        note(f"{keys} holds its hash; the key itself is not kept anywhere. A running server reads it on SIGHUP.")
        return
    if scopes:
        raise click.UsageError("--scope goes with --new-key.")
    from ..serve.server import Setup
    from .source import chosen

    source = chosen(model, None, loras)
    if any(one.scale is not None for one in source.loras):
        raise click.UsageError('--lora takes no strength here; requests name it: "adapter": {"style": 0.5}.')
    setup = Setup(
        hosts=hosts or (() if unix is not None and port is None else ("127.0.0.1",)),
        port=DEFAULT_PORT if port is None else port,
        unix=unix,
        keys_path=keys or key_file.credential(),
        allowed_hosts=allowed_hosts,
        origins=origins,
        aliases=_aliases(aliases),
        drain_s=drain_s,
        strict=strict,
        json_log=json_log,
        metrics_names=metrics_names,
        open_to_all=insecure_no_auth,
    )
    options: EngineOptions = {
        "n_ctx_tokens": context_tokens,
        "threads": threads,
        "ram_bytes": size_bytes_of(ram),
        "adapter_budget_bytes": size_bytes_of(adapter_budget),
        "allow_special": allow_special,
        "n_rows": parallel,
        "reuse": "exact" if exact else "fast",
    }
    _run(setup, source, engine, max_wait_s, parallel, options, as_json)


def _run(
    setup: "Setup",
    source: "Source",
    engine: str,
    max_wait_s: float,
    parallel: int,
    options: "EngineOptions",
    as_json: bool,
) -> None:
    import asyncio

    from ..serve.server import Server

    setup.served = source.base if source.pack is None else source.pack.folder
    setup.loras = {one.name: one.file for one in source.loras}
    setup.base_path = source.base if source.pack is None else source.pack.base_path(allow_pull=True)

    following = contextlib.ExitStack()

    def open_engine() -> "Engine":
        with waiting(lambda: "loading the model"):
            made = source.open_engine(engine, parallel=parallel, max_wait_s=max_wait_s, **options)
        if engine == "llama":
            following.enter_context(source.followed_by(made))
        return made

    async def run() -> None:
        await Server(setup, open_engine, lambda server: _show(server, as_json)).run()

    with source.watched(), following:
        asyncio.run(run())


def _show(server: "Server", as_json: bool) -> None:
    """What the server says of itself once it answers."""
    data = server.as_dict()
    base, *others = data["models"]
    # Its own name is a file's, and long.
    models = [base if base == "base" else f"base ({base})", *others]
    rows = [
        f"memory     {data['memory']}",
        f"listening  {', '.join(data['addresses'])}",
        f"models     {', '.join(models)}",
        f"keys       {', '.join(data['keys']) or 'none are asked for'}",
        "ready",
    ]
    emit(data, as_json, "\n".join(rows))
    sys.stdout.flush()


def _configure(ctx: click.Context, path: Path | None) -> None:
    """Takes what a TOML file says for what the command line leaves out.

    Raises:
        InputError: the file cannot be read, or names what is no option.
    """
    if path is None or ctx.resilient_parsing:
        return
    try:
        table = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"is not valid TOML: {error}", where=path) from None
    options = {option.removeprefix("--"): one for one in ctx.command.params for option in one.opts}
    unknown = [name for name in table if name not in options or name in _NOT_CONFIGURED]
    if unknown:
        near = nearest(unknown[0], [name for name in options if len(name) > 1])
        raise InputError(
            f"there is no option {unknown[0]!r}", where=path, hint=f"did you mean {near}?" if near else None
        )
    ctx.default_map = {str(options[name].name): value for name, value in table.items()}


def _aliases(texts: tuple[str, ...]) -> dict[str, str]:
    """Name -> model."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, model = text.partition("=")
        if not (equals and name and model):
            raise InputError(f"{text!r} is no alias; for example --alias gpt-4o-mini=auto")
        found[name] = model
    return found


@click.command()
@json_option
def ps(as_json: bool) -> None:
    """List the servers that run here, with what they do.

    \b
    Example:
      slm-edge ps
    """
    rows = []
    for path, facts in servers():
        state: dict[str, Any] = {}
        with contextlib.suppress(OSError, SlmEdgeError):
            state = ask(path, "GET", "/v1/slm/state")
        rows.append({**facts, "state": facts["state"], "doing": state})
    lines = [_line(row) for row in rows]
    head = f"{'PID':>7}  {'STATE':9} {'RUNNING':>7} {'WAITING':>7} {'MEMORY':>9}  ADDRESS, BASE, ADAPTERS"
    emit(rows, as_json, "\n".join([head, *lines]) if rows else "no server runs here")


def _line(row: dict[str, Any]) -> str:
    doing = row["doing"]
    memory = human_bytes(doing["memory"]["anon_bytes"]) if "anon_bytes" in doing.get("memory", {}) else "-"
    adapters = ", ".join(one["name"] for one in doing.get("adapters", ())) or "no adapters"
    where = f"{' '.join(row['addresses'])}  {doing.get('base', '-')}: {adapters}"
    numbers = f"{doing.get('running', '-'):>7} {doing.get('waiting', '-'):>7} {memory:>9}"
    return f"{row['pid']:>7}  {row['state']:9} {numbers}  {where}"


@click.command()
@click.option("--server", metavar="PID|PORT", help="Which server; needed where several run.")
@click.option("--once", is_flag=True, help="Show one view, measured over a second, and end.")
def top(server: str | None, once: bool) -> None:
    """Watch a server: requests, tokens per second, memory, by adapter. Ctrl-C ends it.

    \b
    Example:
      slm-edge top
    """
    from rich.console import Console
    from rich.live import Live

    path = chosen_server(server)
    before = ask(path, "GET", "/v1/slm/state")
    if once:
        time.sleep(1)
        Console().print(view(before, ask(path, "GET", "/v1/slm/state")))
        return
    with Live(refresh_per_second=4) as live:
        while True:
            time.sleep(1)
            try:
                now = ask(path, "GET", "/v1/slm/state")
            except OSError:
                note("the server has ended")
                return
            live.update(view(before, now))
            before = now


@click.group()
def adapter() -> None:
    """Change the adapters of a server that runs here; changes are kept over restarts."""


_server_option = click.option("--server", metavar="PID|PORT", help="Which server; needed where several run.")


@adapter.command("list")
@_server_option
@json_option
def list_(server: str | None, as_json: bool) -> None:
    """List a server's adapters with their digests.

    \b
    Example:
      slm-edge adapter list
    """
    rows = ask(chosen_server(server), "GET", "/v1/lora_adapters")["adapters"]
    lines = [f"{one['name']}  {one['digest']}  {human_bytes(one['bytes'])}" for one in rows]
    emit(rows, as_json, "\n".join(harmless(line) for line in lines) or "no adapters")


@adapter.command("add")
@click.argument("name")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--replace", is_flag=True, help="In place of what the name stands for.")
@click.option("--expect", metavar="DIGEST", help="Only if the name stands for this digest until now.")
@_server_option
@json_option
def add(name: str, path: Path, replace: bool, expect: str | None, server: str | None, as_json: bool) -> None:
    """Give a server an adapter: PATH is its GGUF file, or a pack that has one of that NAME.

    The file is checked, loaded and tried before the name stands for it; answers in the making keep theirs.

    \b
    Example:
      slm-edge adapter add math new/math.gguf --replace
    """
    body = {"lora_name": name, "lora_path": os.fspath(path.resolve()), "load_inplace": replace}
    if expect is not None:
        body["expected_generation"] = expect
    made = ask(chosen_server(server), "POST", "/v1/load_lora_adapter", body, LOAD_S)
    emit(made, as_json, f"{made['name']} is {made['digest']}")


@adapter.command("remove")
@click.argument("name")
@click.option("--expect", metavar="DIGEST", help="Only if the name stands for this digest.")
@_server_option
@json_option
def remove(name: str, expect: str | None, server: str | None, as_json: bool) -> None:
    """Take an adapter from a server; answers in the making are made to their end.

    \b
    Example:
      slm-edge adapter remove math
    """
    body = {"lora_name": name} if expect is None else {"lora_name": name, "expected_generation": expect}
    emit(ask(chosen_server(server), "POST", "/v1/unload_lora_adapter", body), as_json, f"{name} is taken away")
