"""The systemd unit of a server, and how it comes and goes.

    unit_text(Service("slm-edge", ["/opt/slm/bin/slm-edge", "serve", "/srv/my-pack"], user=False))

A unit of the system runs as a user that exists only while it runs, and can write to its cache alone; one of a user
(`systemctl --user`) runs as that user, under what a user may take from itself.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..errors import EngineError, InputError
from ..files.atomic import atomic_file, make_folder

# A prompt's chunk on a slow board, and a machine that swaps, may keep the engine for so long.
WATCHDOG_S: Final = 120
# The first start fetches and checks the base.
START_S: Final = 1800
CREDENTIAL: Final = "slm-edge-keys"

_SANDBOX: Final = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
SystemCallArchitectures=native
SystemCallFilter=@system-service
UMask=0077
"""
_SYSTEM_SANDBOX: Final = """\
DynamicUser=yes
CacheDirectory=slm-edge
StateDirectory=slm-edge
RuntimeDirectory=slm-edge
Environment=XDG_CACHE_HOME=%C/slm-edge XDG_DATA_HOME=%S/slm-edge HOME=%S/slm-edge
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=read-only
ProtectProc=invisible
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
PrivateTmp=yes
PrivateDevices=yes
RemoveIPC=yes
"""


@dataclass(frozen=True)
class Service:
    """A server as a service.

    Attributes:
        name: of the unit, without ".service".
        command: the program with its arguments; paths in it are absolute.
        user: a unit of this user, not of the system.
        drain_s: how long answers may take to their end.
        keys: file of keys that the service manager hands over, since the service's user may not read it.
    """

    name: str
    command: Sequence[str]
    user: bool = False
    drain_s: float = 30.0
    keys: Path | None = None
    root: Path = field(default=Path("/"))

    @property
    def path(self) -> Path:
        """Where the unit's file lies."""
        if self.user:
            config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
            return Path(config) / "systemd" / "user" / f"{self.name}.service"
        return self.root / "etc/systemd/system" / f"{self.name}.service"


def unit_text(service: Service) -> str:
    """The unit's file."""
    command = " ".join(_quoted(word) for word in service.command)
    lines = [
        "[Unit]",
        "Description=slm-edge: a small language model with task adapters, for OpenAI clients",
        "After=network-online.target",
        "Wants=network-online.target",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={command}",
        # Keys are read again; those of a credential come with the next start.
        "ExecReload=/bin/kill -HUP $MAINPID",
        *([f"LoadCredential={CREDENTIAL}:{service.keys}"] if service.keys is not None else []),
        "Restart=on-failure",
        "RestartSec=2",
        f"WatchdogSec={WATCHDOG_S}",
        f"TimeoutStartSec={START_S}",
        f"TimeoutStopSec={service.drain_s + 15:g}",
        *_SANDBOX.splitlines(),
        *([] if service.user else _SYSTEM_SANDBOX.splitlines()),
        "",
        "[Install]",
        f"WantedBy={'default.target' if service.user else 'multi-user.target'}",
        "",
    ]
    return "\n".join(lines)


def _quoted(word: str) -> str:
    """A word as systemd reads it: in quotes where it must be, "%" and "$" doubled."""
    word = word.replace("%", "%%").replace("$", "$$")
    if word and not set(word) & set(" \t\n\"'\\;"):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def install(service: Service, *, start: bool) -> list[str]:
    """Writes the unit and enables it; `start` starts it too.

    Returns:
        What was done, for people.

    Raises:
        InputError: the unit of the system is asked for by somebody else than root.
        EngineError: systemd is missing or refuses it.
    """
    if not service.user and os.geteuid() != 0 and service.root == Path("/"):
        raise InputError(
            f"only root may write {service.path}",
            hint=f"sudo {shlex.join(_this_program())} service install …, or --user for one of your own",
        )
    _need_systemd(service)
    make_folder(service.path.parent)
    with atomic_file(service.path) as aside:
        aside.write_text(unit_text(service), encoding="utf-8")
        aside.chmod(0o644)
    done = [f"written: {service.path}"]
    if service.root != Path("/"):
        _systemctl(service, f"--root={service.root}", "enable", service.name)
        return [*done, "enabled; it starts when that system does"]
    _systemctl(service, "daemon-reload")
    _systemctl(service, "enable", *(["--now"] if start else []), service.name)
    log = f"journalctl {'--user ' if service.user else ''}-u {service.name}"
    done.append(f"enabled{' and started' if start else ''}; its log: {log} -e")
    if service.user:
        done.append("it ends when you log out, unless: loginctl enable-linger")
    return done


def uninstall(service: Service) -> list[str]:
    """Stops and removes the unit; its cache stays.

    Raises:
        InputError: there is no such unit.
        EngineError: as `install`.
    """
    if not service.path.is_file():
        raise InputError("there is no such service", where=service.path)
    _need_systemd(service)
    if service.root == Path("/"):
        _systemctl(service, "disable", "--now", service.name)
    else:
        _systemctl(service, f"--root={service.root}", "disable", service.name)
    service.path.unlink()
    if service.root == Path("/"):
        _systemctl(service, "daemon-reload")
    kept = [] if service.user else ["what it fetched stays: /var/cache/slm-edge, /var/lib/slm-edge"]
    return [f"removed: {service.path}", *kept]


def _need_systemd(service: Service) -> None:
    """Nothing is written where it would not be read."""
    runs = service.root != Path("/") or Path("/run/systemd/system").is_dir()
    if shutil.which("systemctl") is None or not runs:
        raise EngineError(
            "there is no systemd here", hint="slm-edge service --print shows the unit; containers: docs/deploy.md"
        )


def _systemctl(service: Service, *words: str) -> None:
    command = ["systemctl", *(["--user"] if service.user else []), *words]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise EngineError(f"{shlex.join(command)} failed", problems=done.stderr.strip().splitlines()[-3:])


def _this_program() -> list[str]:
    """How this program is called, wherever it is called from."""
    script = Path(sys.executable).parent / "slm-edge"
    return [str(script)] if script.is_file() else [sys.executable, "-m", "slm_edge.edge"]


def service_command(words: Sequence[str]) -> list[str]:
    """`slm-edge serve` with these arguments, as a service manager calls it."""
    return [*_this_program(), "serve", *words]
