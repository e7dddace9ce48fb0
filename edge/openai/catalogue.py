"""Which models there are for clients: the base, each adapter, and "auto" where a router chooses; and what a name means.

catalogue = Catalogue(engine.facts(), aliases={"gpt-4o-mini": "auto"})
catalogue.target("math", None, may_ask)                          # the adapter math
catalogue.target("base", {"math": 0.7, "code": 0.3}, may_ask)    # a mix
catalogue.target("gpt-4o-mini", None, may_ask)                   # "auto"
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..answer.settings import AdapterName, parse_choice
from ..errors import InputError
from ..scheduler.stats import AdapterFacts, EngineFacts
from ..written import did_you_mean
from .faults import Fault, fault_of

BASE: Final = "base"
AUTO: Final = "auto"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")

MayAsk = Callable[[str], bool]


@dataclass(frozen=True)
class Catalogue:
    """What can be asked of an engine at one moment.

    Attributes:
        aliases: further names of models, for tools whose names are fixed.
        created_s: when the base's file was made, seconds since 1970.
        base_meta: what the base's entry says beside.
    """

    facts: EngineFacts
    aliases: Mapping[str, str] = field(default_factory=dict)
    created_s: int = 0
    base_meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def base_name(self) -> str:
        """The id of the base alone: the name that users know it by, where that is no other model's."""
        name = self.facts.base_name
        return BASE if not name or name == AUTO or name in self.adapters else name

    @property
    def adapters(self) -> dict[str, AdapterFacts]:
        """By name."""
        return {one.name: one for one in self.facts.adapters}

    def check_aliases(self) -> None:
        """Raises InputError for an alias that is a model's name, or stands for none."""
        for alias, target in self.aliases.items():
            if alias in (*self._ids(), BASE):
                raise InputError(f"the alias {alias!r} is the name of a model here")
            if target not in (*self._ids(), *self._base_names):
                known = ", ".join(did_you_mean(target, self._ids()))
                raise InputError(f"the alias {alias!r} is for {target!r}, no model here", hint=f"there are: {known}")

    @property
    def _base_names(self) -> tuple[str, ...]:
        """All that the base may be asked by: what its file calls itself, too, where that is no other model's."""
        inner = self.facts.inner_name
        others = (AUTO, *self.adapters, *self.aliases)
        return (self.base_name, BASE, *([inner] if inner and inner not in others else []))

    def _ids(self) -> list[str]:
        return [self.base_name, *self.adapters, *([AUTO] if self.facts.has_router else [])]

    def ids(self, may_ask: MayAsk) -> list[str]:
        """The models that one who asks may ask, aliases last."""
        shown = [one for one in self._ids() if self._may(one, may_ask)]
        return [*shown, *(alias for alias, target in self.aliases.items() if self._may(target, may_ask))]

    def _may(self, name: str, may_ask: MayAsk) -> bool:
        return any(map(may_ask, self._base_names)) if name in self._base_names else may_ask(name)

    def entry(self, name: str) -> dict[str, Any]:
        """A model as /v1/models shows it."""
        target = self.aliases.get(name, name)
        target = self.base_name if target in self._base_names else target
        entry: dict[str, Any] = {
            "id": name,
            "object": "model",
            "created": self.created_s,
            "owned_by": "slm-edge",
            "root": target,
            "parent": self.base_name,
            "max_model_len": self.facts.n_ctx_tokens,
        }
        found = self.adapters.get(target)
        if found is not None:
            entry["slm_edge"] = {
                "kind": "adapter",
                "digest": f"sha256:{found.digest}",
                "task": found.card.task,
                "description": found.card.description,
                "bytes": found.size_bytes,
                "loaded": found.loaded,
                "scores": found.card.scores,
            }
        elif target == AUTO:
            entry["slm_edge"] = {"kind": "router", "chooses_among": [self.base_name, *self.adapters]}
        else:
            entry |= {"parent": None, "meta": self.base_meta, "slm_edge": {"kind": "base"}}
        return entry

    def found(self, name: str, may_ask: MayAsk) -> str:
        """The id of the model that a name means, aliases resolved.

        Raises:
            Fault: 404 where there is none; 403 where it may not be asked.
        """
        target = self.aliases.get(name, name)
        target = self.base_name if target in self._base_names else target
        if target not in self._ids():
            known = did_you_mean(name, self.ids(may_ask))[:5]
            there = f"; there are: {', '.join(known)}" if known else ""
            raise Fault(404, "model_not_found", f"the model {name!r} does not exist here{there}", param="model")
        if not self._may(target, may_ask):
            raise Fault(403, "not_allowed", f"this key may not ask the model {name!r}", param="model")
        return target

    def target(self, model: str, adapter: str | Mapping[str, float | str] | None, may_ask: MayAsk) -> AdapterName:
        """What the engine is asked for: "auto", an adapter, several with their scales, or None for the base.

        Args:
            adapter: of the request's own field, beside the base as its model.

        Raises:
            Fault: as `found`; 400 for an adapter beside another model, or a mix that is none.
        """
        found = self.found(model, may_ask)
        if adapter is None or adapter == {}:
            return None if found == self.base_name else found
        if found != self.base_name:
            raise Fault(
                400, "invalid_value", f"`adapter` goes with the base as the model ({self.base_name})", param="adapter"
            )
        try:
            named = parse_choice(adapter) if isinstance(adapter, str) else self._mapped(adapter)
        except InputError as error:
            raise fault_of(error, "adapter") from None
        for name in named:
            if name == AUTO and len(named) == 1:
                return self.found(AUTO, may_ask)
            if name not in self.adapters:
                raise Fault(404, "model_not_found", self._no_adapter(name), param="adapter")
            if not may_ask(name):
                raise Fault(403, "not_allowed", f"this key may not ask the adapter {name!r}", param="adapter")
        if len(named) == 1 and None in named.values():
            return next(iter(named))
        return named

    def _mapped(self, given: Mapping[str, float | str]) -> dict[str, float | None]:
        if set(given) == {"digest"}:
            digest = given["digest"]
            if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
                raise InputError("the digest is not sha256: and 64 hexadecimal digits")
            held = [one.name for one in self.facts.adapters if f"sha256:{one.digest}" == digest]
            if not held:
                raise Fault(404, "model_not_found", "no adapter here has this digest now", param="adapter.digest")
            return {held[0]: None}
        scales: dict[str, float | None] = {}
        for name, scale in given.items():
            if isinstance(scale, str):
                raise InputError(f"the scale of {name!r} is a text; it takes a number")
            scales[name] = scale
        return scales

    def _no_adapter(self, name: str) -> str:
        known = did_you_mean(name, self.adapters)[:5]
        return f"there is no adapter {name!r}; there are: {', '.join(known) or 'none'}"

    def id_of(self, adapter: str | None) -> str:
        """The id of what answered: the base's name, an adapter's, or a mix as "code:0.3+math:0.7"."""
        return adapter or self.base_name
