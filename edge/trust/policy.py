"""What this machine asks of a pack's signature, by where the pack is or comes from: `policy.toml` of the trust folder.

    [[trust]]
    pattern = "/opt/packs/**"       # a folder; or an address, `hf:owner/**`, `starter`
    keys = ["maker"]                # names or ids; left out: every trusted key
    mode = "enforce"                # refuse what they did not sign; warn: say so; off: do not look

The first rule that matches holds. Where none does, a signature that is there must fit, and none is needed.
"""

import re
import tomllib
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from ..errors import InputError
from ..files.cache import trust_folder
from ..files.read import read_text
from .gate import POLICY_FILE
from .keys import TrustedKey

Mode = Literal["enforce", "warn", "off"]
MOST_POLICY_BYTES: Final = 1 << 20
_WILD: Final = re.compile(r"(\*\*|\*|\?)")
_MEANS: Final = {"**": ".*", "*": "[^/]*", "?": "[^/]"}


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        keys: names or ids of keys; None for every trusted key.
        mode: None where no rule was written: a signature that is there must fit.
    """

    pattern: str
    keys: tuple[str, ...] | None = None
    mode: Mode | None = None

    def matches(self, place: str) -> bool:
        """Whether it holds for a place: `*` stands for letters within a part, `**` across parts."""
        parts = (_MEANS.get(part) or re.escape(part) for part in _WILD.split(self.pattern))
        return re.fullmatch("".join(parts), place, re.DOTALL) is not None

    def takes(self, key: TrustedKey) -> bool:
        """Whether a trusted key may sign what this rule is about."""
        if self.keys is None:
            return True
        return any(named.lower() in (key.name.lower(), key.key_id.lower()) for named in self.keys)


NO_RULE: Final = Rule("**")


def read_policy() -> list[Rule]:
    """The rules; none where no policy was written.

    Raises:
        InputError: the file is not a policy; all faults are named.
    """
    path = trust_folder() / POLICY_FILE
    if not path.exists():
        return []
    try:
        data = tomllib.loads(read_text(path, MOST_POLICY_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not valid TOML ({error})", where=path) from None
    faults = [f"the key {key!r} is not known" for key in data if key != "trust"]
    tables = data.get("trust", [])
    if not isinstance(tables, list):
        faults, tables = [*faults, "'trust' is written [[trust]]"], []
    rules = [_rule(table, f"rule {number}", faults) for number, table in enumerate(tables, 1)]
    if faults:
        raise InputError("is not a trust policy", where=path, problems=faults)
    return rules


def rule_for(*places: str) -> Rule:
    """The first rule that matches any of the places; `NO_RULE` where none does. Errors as `read_policy`."""
    return next((rule for rule in read_policy() if any(rule.matches(place) for place in places)), NO_RULE)


def _rule(table: Any, where: str, faults: list[str]) -> Rule:
    if not isinstance(table, dict):
        faults.append(f"{where} is not a table")
        return NO_RULE
    faults += [f"{where}: the key {key!r} is not known" for key in table if key not in ("pattern", "keys", "mode")]
    pattern, keys, mode = table.get("pattern"), table.get("keys"), table.get("mode", "enforce")
    if not isinstance(pattern, str) or not pattern:
        faults.append(f"{where} has no pattern")
    if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) and key for key in keys)):
        faults.append(f"{where}: keys is not a list of names or ids")
        keys = None
    if mode not in get_args(Mode):
        faults.append(f"{where}: mode is {mode!r}; one of {', '.join(get_args(Mode))}")
    return Rule(str(pattern), None if keys is None else tuple(keys), mode)
