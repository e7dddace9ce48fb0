"""`slm-edge key`, `pack sign` and `channel`: keys, signatures made with them, and what is given to devices."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import emit, json_option, note
from ..errors import InputError

if TYPE_CHECKING:
    from ..trust.secret_key import SecretKey
    from ..update.channel import Channel

PATH = click.Path(path_type=Path)
PASSPHRASE = "SLM_EDGE_PASSPHRASE"

passphrase_option = click.option(
    "--passphrase-file",
    type=PATH,
    help=f"Read the key's passphrase from the first line of this file.  [default: ${PASSPHRASE}, else it is asked for]",
)


def passphrase(file: Path | None, *, new: bool = False) -> str:
    """A secret key's passphrase: from a file, the environment, or asked for on the terminal. Never from the arguments,
    which every process of the machine can read.

    Raises:
        InputError: there is nobody to ask, or the file cannot be read.
    """
    from ..files.read import lines_of, read_text

    if file is not None:
        return next(iter(lines_of(read_text(file, 1 << 16))), "")
    if (given := os.environ.get(PASSPHRASE)) is not None:
        return given
    if not sys.stdin.isatty():
        raise InputError(
            "the key's passphrase is needed and there is no terminal to ask for it",
            hint=f"give --passphrase-file FILE, or set {PASSPHRASE}",
        )
    return str(click.prompt("Passphrase", hide_input=True, confirmation_prompt=new, err=True))


@click.group()
def key() -> None:
    """Make keys, and say whose packs this machine trusts.

    Who makes packs keeps the secret key; devices get the public one.

    \b
    Example:
      slm-edge key new maker
      slm-edge pack sign my-pack --key maker.key --version 1.0
      slm-edge key trust maker.pub
    """


@key.command("new")
@click.argument("name")
@click.option("-o", "--output", type=PATH, default=Path(), help="Folder to write into.  [default: here]")
@click.option("--ecdsa", is_flag=True, help="A key for model.sig (OpenSSF model signing) in place of minisign's.")
@passphrase_option
@json_option
def new_key(name: str, output: Path, ecdsa: bool, passphrase_file: Path | None, as_json: bool) -> None:
    """Make a key pair: NAME.key, encrypted, for whoever signs, and NAME.pub for the devices.

    minisign reads both files, and its keys are taken too.

    \b
    Examples:
      slm-edge key new maker
      slm-edge key new maker -o ~/keys --passphrase-file passphrase.txt
    """
    from ..files.atomic import atomic_file, check_new
    from ..trust.keys import parse_key, write_secret
    from ..written import check_name

    check_name(name, "a key")
    secret_path, public_path = output / f"{name}.key", output / f"{name}.pub"
    for path in (secret_path, public_path):
        check_new(path, force=False)
    words = passphrase(passphrase_file, new=True)
    if ecdsa:
        from ..trust.oms import new_ecdsa_key

        secret, public = new_ecdsa_key(words)
    else:
        from ..trust.secret_key import SecretKey

        pair = SecretKey.new()
        secret, public = pair.text(words), pair.public.text()
    key_id = parse_key(public)[0]
    write_secret(secret_path, secret)
    with atomic_file(public_path) as aside:
        aside.write_text(public, encoding="utf-8")
    data = {"key": key_id, "secret": str(secret_path), "public": str(public_path)}
    emit(
        data, as_json, f"key {key_id}\n{secret_path}  keep it and its passphrase\n{public_path}  give it to the devices"
    )


@key.command("list")
@json_option
def list_keys(as_json: bool) -> None:
    """List the keys that this machine trusts, those that were revoked, and the trust policy.

    \b
    Example:
      slm-edge key list
    """
    from ..files.cache import trust_folder
    from ..trust.keys import revoked_keys, trusted_keys
    from ..trust.policy import read_policy

    trusted, revoked, rules = trusted_keys(), revoked_keys(), read_policy()
    data = {
        "folder": str(trust_folder()),
        "trusted": [{"name": one.name, "key": one.key_id, "kind": _kind(one)} for one in trusted],
        "revoked": [{"key": one.key_id, "kind": _kind(one)} for one in revoked],
        "policy": [{"pattern": rule.pattern, "keys": rule.keys, "mode": rule.mode} for rule in rules],
    }
    lines = [f"trusted   {one.name}  {one.key_id}  {_kind(one)}" for one in trusted]
    lines += [f"revoked   {one.key_id}  {_kind(one)}" for one in revoked]
    lines += [f"{rule.mode or '':9} {rule.pattern}  {', '.join(rule.keys or ('every trusted key',))}" for rule in rules]
    emit(
        data,
        as_json,
        "\n".join([*(lines or ["no key is trusted yet: slm-edge key trust FILE.pub"]), str(trust_folder())]),
    )


def _kind(one: Any) -> str:
    return "minisign" if one.is_minisign else "ecdsa"


@key.command()
@click.argument("public", metavar="FILE|KEY")
@click.option("--name", help="What to call it here.  [default: the file's name]")
@json_option
def trust(public: str, name: str | None, as_json: bool) -> None:
    """Trust a public key: a .pub file, or the one line of it that begins with RW.

    Compare the key with what its owner told you on another way than the one it came on.

    \b
    Examples:
      slm-edge key trust maker.pub
      slm-edge key trust RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3 --name maker
    """
    from ..files.read import read_text
    from ..trust.keys import MOST_KEY_BYTES, trust_key

    path = Path(public)
    if path.is_file():
        named, text = name or path.stem, read_text(path, MOST_KEY_BYTES)
    elif name is None:
        raise InputError("no such file", where=public, hint="for a key itself give a name: --name maker")
    else:
        named, text = name, public
    found = trust_key(text, named)
    emit({"name": found.name, "key": found.key_id}, as_json, f"{found.name} is trusted: key {found.key_id}")


@key.command()
@click.argument("named", metavar="NAME|KEY|FILE")
@json_option
def revoke(named: str, as_json: bool) -> None:
    """Revoke a key: what it signed is refused from now on, whatever the policy says.

    NAME or KEY is one of `slm-edge key list`; a public key that was never trusted here is given as its FILE.

    \b
    Example:
      slm-edge key revoke maker
    """
    from ..files.read import read_text
    from ..trust.keys import MOST_KEY_BYTES, revoke_key

    path = Path(named)
    gone = revoke_key(read_text(path, MOST_KEY_BYTES) if path.is_file() else named)
    emit({"key": gone.key_id}, as_json, f"key {gone.key_id} is revoked; packs that it signed are refused")


@click.command()
@click.argument("folder", metavar="PACK", type=PATH)
@click.option("--key", "key_file", type=PATH, required=True, help="The secret key, of slm-edge key new or minisign -G.")
@click.option("--version", help="Version of the pack, such as 1.4.0; devices refuse to go back behind it.")
@passphrase_option
@json_option
def sign(folder: Path, key_file: Path, version: str | None, passphrase_file: Path | None, as_json: bool) -> None:
    """Sign PACK, after every byte of it was checked.

    Writes pack.json.minisig, which `minisign -V` takes too; with an ECDSA key in PEM model.sig of OpenSSF model
    signing. Both may be there. A later change of the pack removes them.

    \b
    Examples:
      slm-edge pack sign my-pack --key maker.key --version 1.0
      slm-edge pack sign my-pack --key ecdsa.key
    """
    from ..files.atomic import atomic_file
    from ..files.read import read_text
    from ..pack.sign import sign_pack
    from ..trust.keys import MOST_KEY_BYTES

    secret = read_text(key_file, MOST_KEY_BYTES)
    try:
        name, text, data = sign_pack(folder, secret, passphrase(passphrase_file), version)
    except InputError as error:
        raise InputError(
            error.message, where=error.where or key_file, hint=error.hint, problems=error.problems
        ) from None
    with atomic_file(folder / name) as aside:
        aside.write_text(text, encoding="utf-8")
    if version is None and name.endswith(".minisig"):
        note("note: signed without --version, so that devices cannot tell an old one from a new one")
    emit({"pack": str(folder), "file": name, **data}, as_json, f"{folder / name}: {data['words']}")


@click.group()
def channel() -> None:
    """Give new versions to devices: a folder of static files for any web server.

    \b
    Example:
      slm-edge pack sign my-pack --key maker.key --version 1.1
      slm-edge channel release site my-pack --key maker.key --percent 25
    """


def _signing(command: Callable[..., Any]) -> Callable[..., Any]:
    command = json_option(command)
    command = passphrase_option(command)
    return click.option("--key", "key_file", type=PATH, required=True, help="The secret key that signs the channel.")(
        command
    )


def _secret(key_file: Path, passphrase_file: Path | None) -> "SecretKey":
    from ..files.read import read_text
    from ..trust.keys import MOST_KEY_BYTES
    from ..trust.secret_key import SecretKey

    text = read_text(key_file, MOST_KEY_BYTES)
    try:
        return SecretKey.parse(text, passphrase(passphrase_file))
    except InputError as error:
        raise InputError(error.message, where=error.where or key_file, hint=error.hint) from None


def _emit(site: Path, made: "Channel", as_json: bool) -> None:
    rows = [asdict(row) for row in made.releases]
    lines = [f"{site}: channel of {made.name}, number {made.sequence}"]
    for row in made.releases:
        words = "withdrawn" if row.withdrawn else f"{row.percent:g} % of the machines"
        lines.append(f"{row.version:12} {words}, from slm-edge {row.min_runtime}")
    emit(
        {"name": made.name, "sequence": made.sequence, "expires_s": made.expires_s, "releases": rows},
        as_json,
        "\n".join(lines),
    )


@channel.command()
@click.argument("site", type=PATH)
@click.argument("pack", type=PATH)
@click.option("--percent", type=click.FloatRange(0, 100), default=100, show_default=True, help="Of the machines.")
@click.option("--min-runtime", default="0", help="The oldest slm-edge that it works with.")
@click.option("--with-base", is_flag=True, help="Put the base there too, if the pack does not carry it.")
@click.option("--expires-days", type=click.IntRange(min=1), help="After so many days no update is taken any more.")
@_signing
def release(
    site: Path,
    pack: Path,
    key_file: Path,
    percent: float,
    min_runtime: str,
    with_base: bool,
    expires_days: int | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Put the signed PACK into the channel in the folder SITE; a new folder becomes a channel.

    \b
    Examples:
      slm-edge channel release site my-pack --key maker.key --percent 25
      slm-edge channel release /media/stick/my-pack my-pack --key maker.key --with-base
    """
    from ..trust.minisign import version_parts
    from ..update.publish import publish

    version_parts(min_runtime)
    made = publish(
        site,
        pack,
        _secret(key_file, passphrase_file),
        percent=percent,
        min_runtime=min_runtime,
        with_base=with_base,
        expires_s=int(time.time()) + expires_days * 86400 if expires_days else None,
    )
    _emit(site, made, as_json)


@channel.command()
@click.argument("site", type=PATH)
@click.argument("version")
@click.argument("percent", type=click.FloatRange(0, 100))
@_signing
def rollout(
    site: Path, version: str, percent: float, key_file: Path, passphrase_file: Path | None, as_json: bool
) -> None:
    """Let PERCENT of the machines have VERSION. Those that have it keep it.

    \b
    Example:
      slm-edge channel rollout site 1.1 50 --key maker.key
    """
    from ..update.publish import change

    secret = _secret(key_file, passphrase_file)
    made = change(site, secret, lambda before: before.with_release(replace(before.find(version), percent=percent)))
    _emit(site, made, as_json)


@channel.command()
@click.argument("site", type=PATH)
@click.argument("version")
@_signing
def withdraw(site: Path, version: str, key_file: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Take VERSION back: nobody gets it any more, and who has it goes to the newest other one.

    \b
    Example:
      slm-edge channel withdraw site 1.1 --key maker.key
    """
    from ..update.publish import change

    secret = _secret(key_file, passphrase_file)
    made = change(site, secret, lambda before: before.with_release(replace(before.find(version), withdrawn=True)))
    _emit(site, made, as_json)
