"""Which cells of the matrix tasks x columns are measured, in which order, and what makes a cell itself.

A column is what answers: the base alone, one adapter, the router's choice ("auto"), or a model behind an endpoint.
"""

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ...edge.answer.settings import BASE_CARD
from ...edge.answer.thinking import form_of
from ...edge.errors import InputError, SlmEdgeError
from ...edge.files.cache import base_cache_path
from ...edge.gguf.chat_template import ChatTemplate
from ...edge.gguf.file import GgufFile
from ...edge.onnx.engine import runtime
from ...edge.onnx.folder import TOKENIZER_FILE
from ...edge.onnx.in_pack import ONNX_FOLDER, base_sha256, onnx_adapters
from ...edge.pack.manifest import ROUTER_FILE
from ...edge.pack.pack import Pack, PackedAdapter
from ...edge.written import did_you_mean
from ..tasks.benchmark import Benchmark, Decoding, Item, items_sha256, sampled
from .answers import Identity

IDENTITY_SCHEMA = 1
AUTO = "auto"


@dataclass(frozen=True)
class Column:
    """What answers.

    Attributes:
        name: the adapter's, "auto", or the endpoint's model; None for the base alone.
        adapter: of one adapter.
        facts: what the answers depend on besides, for the identity of a cell.
    """

    name: str | None
    adapter: PackedAdapter | None = None
    facts: Mapping[str, Any] | None = None

    @property
    def is_auto(self) -> bool:
        return self.name == AUTO and self.adapter is None


@dataclass(frozen=True)
class Cell:
    """One task in one column.

    Attributes:
        items: all of the task's, in running order; with several samples, those of a problem stand together.
        n: how many of them are to be measured, by all parts together.
        decoding: how answers are drawn, with `seed` where they are not greedy.
        part: (2, 3) where this run measures the second of three parts.
        template_args: what the chat template is told, on top of each adapter's card.
        identity: everything that an answer depends on.
    """

    task: Benchmark
    column: Column
    items: list[Item]
    n: int
    max_tokens: int
    identity: Identity
    decoding: Decoding = field(default_factory=Decoding)
    seed: int = 0
    part: tuple[int, int] = (1, 1)
    template_args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def wanted(self) -> list[Item]:
        """The items that this run is to measure: the first `n`, of these every part's share, whole problems."""
        number, of = self.part
        per_problem = self.decoding.samples
        return [item for i, item in enumerate(self.items[: self.n]) if i // per_problem % of == number - 1]

    @property
    def adapter(self) -> PackedAdapter | None:
        return self.column.adapter

    @property
    def adapter_name(self) -> str | None:
        return self.column.name

    @property
    def stop(self) -> tuple[str, ...] | None:
        """Texts that end an answer, in place of the adapter's own; None: these."""
        return self.task.stop

    @property
    def is_own(self) -> bool:
        """Whether the adapter was made for this task."""
        return self.adapter is not None and self.task.kind in (self.adapter.card.task, self.adapter.name)

    @property
    def label(self) -> str:
        return f"{self.task.name} x {self.adapter_name or 'base'}"


@dataclass(frozen=True)
class Wanted:
    """How much is measured, and how.

    Attributes:
        limit: items of each cell; None: all.
        limit_others: the same for adapters made for another task; 0: none; None: as `limit`.
        max_tokens: cap of an answer in place of the task's own.
        decoding: in place of the own one of tasks that take several samples.
        seed: of drawn answers.
        part: which part of each cell, of how many; no answer depends on it, so it is in no identity.
        template_args: what the chat template is told, on top of each adapter's card.
        day: which day it is, for templates that write it.
    """

    limit: int | None = None
    limit_others: int | None = None
    max_tokens: int | None = None
    decoding: Decoding | None = None
    seed: int = 0
    part: tuple[int, int] = (1, 1)
    template_args: Mapping[str, Any] = field(default_factory=dict)
    day: datetime.date = dataclasses.field(default_factory=datetime.date.today)

    def decoding_of(self, task: Benchmark) -> Decoding:
        return self.decoding if self.decoding is not None and task.takes_samples else task.decoding


def pack_template(pack: Pack) -> ChatTemplate | None:
    """The chat template of a pack's base; None where the base is not at hand, or has none that works."""
    onnx = pack.folder / ONNX_FOLDER / TOKENIZER_FILE
    for path in (pack.folder / pack.base.file_name, base_cache_path(pack.base.sha256), onnx):
        try:
            if path.is_file():
                return ChatTemplate.of(GgufFile.open(path))
        except SlmEdgeError:
            return None
    return None


def _dated_prompt_sha256(template: ChatTemplate | None, day: datetime.date) -> str | None:
    """Of a prompt as the model sees it on a day, where tomorrow's is another one; None where they are equal."""
    if template is None or not template.is_dated:
        return None
    template.fix_date(day)
    return hashlib.sha256(template.render([{"role": "user", "content": "Hello"}]).encode()).hexdigest()


def _identity(
    task: Benchmark,
    items_hash: str,
    pack: Pack | None,
    column: Column,
    max_tokens: int,
    decoding: Decoding,
    seed: int,
    dated: str | None,
) -> Identity:
    adapter = column.adapter
    stop = list(task.stop) if task.stop is not None else list(adapter.card.stop) if adapter else []
    identity: dict[str, Any] = {
        "schema": IDENTITY_SCHEMA,
        "task": task.name,
        "adapter": column.name,
        "items_sha256": items_hash,
        "base_sha256": pack.base.sha256 if pack is not None else None,
        "adapter_sha256": adapter.sha256 if adapter else None,
        "scale": adapter.card.scale if adapter else None,
        "system": adapter.card.system if adapter else None,
        "stop": stop,
        "max_tokens": max_tokens,
        "decoding": "greedy" if decoding.greedy else "sampling",
        "llama_cpp_python": metadata.version("llama-cpp-python") if pack is not None else None,
    }
    # What the first tasks don't have is named only where it is, so that their answers stay theirs
    if not decoding.greedy:
        identity |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "seed": seed}
    if task.way != "answers":
        identity["way"] = task.way
    if dated is not None:
        identity["dated_prompt_sha256"] = dated
    if adapter is not None:
        identity |= _later_keys(adapter)
    if column.facts is not None:
        identity |= column.facts
    return identity


def _later_keys(adapter: PackedAdapter) -> dict[str, Any]:
    """What a card says of its prompts that the first cards did not: named only where it does."""
    card = adapter.card
    template = {"template": dict(card.template)} if card.template else {}
    return template | ({"thinking": list(card.thinking)} if card.thinking is not None else {})


def _form(template: ChatTemplate | None, column: Column) -> tuple[str, str] | None:
    """How thoughts are taken out of a column's answers; None where there are none to take out."""
    card = column.adapter.card if column.adapter is not None else BASE_CARD
    return form_of(template, card) if template is not None else None


def columns_of(pack: Pack, names: Sequence[str], engine: str = "llama") -> list[Column]:
    """The columns named: an adapter, "none" (the base alone), "each" (the base and every adapter), "auto" (the router).

    Args:
        engine: "onnx" for the pack's ONNX form, with the adapters that have one.

    Raises:
        InputError: a name that the pack doesn't have; nearest names are given. "auto" in a pack without a router. No
            ONNX form where one is asked for.
    """
    chosen: dict[str, Column] = {}
    adapters, facts = (pack.adapters, None) if engine == "llama" else (onnx_adapters(pack), _onnx_facts(pack))
    for name in names or ("each",):
        if name == "each":
            chosen["none"] = Column(None, facts=facts)
            chosen |= {key: Column(key, one, facts) for key, one in adapters.items()}
        elif name == "none":
            chosen["none"] = Column(None, facts=facts)
        elif name in adapters:
            chosen[name] = Column(name, adapters[name], facts)
        elif name == AUTO:
            chosen[AUTO] = Column(AUTO, facts=_router_facts(pack) | (facts or {}))
        elif name in pack.adapters:
            raise InputError(
                f"the adapter {name!r} has no ONNX form",
                where=pack.folder,
                hint=f"slm-edge export onnx-adapter, then slm-edge pack add PACK {name} {name}.onnx_adapter",
            )
        else:
            near = did_you_mean(name, [*adapters, "none", "each", AUTO])
            raise InputError(f"the pack {pack.name} has no adapter {name!r}", hint=f"there are: {', '.join(near)}")
    return list(chosen.values())


def _onnx_facts(pack: Pack) -> dict[str, Any]:
    """What answers of the ONNX form depend on besides: its files, told by its description, and onnxruntime."""
    return {
        "engine": "onnx",
        "onnx_base_sha256": base_sha256(pack),
        "onnxruntime": runtime().__version__,
    }


def _router_facts(pack: Pack) -> dict[str, Any]:
    """What the router's answers depend on: its file and every adapter with its card."""
    router_sha256 = pack.manifest.files.get(ROUTER_FILE)
    if router_sha256 is None:
        raise InputError(
            f"the pack {pack.name} has no router, which {AUTO!r} needs",
            where=pack.folder,
            hint="slm-edge router put PACK FILE gives it one",
        )
    cards = {
        name: {"sha256": one.sha256, "scale": one.card.scale, "system": one.card.system, "stop": list(one.card.stop)}
        | _later_keys(one)
        for name, one in pack.adapters.items()
    }
    made_of = json.dumps({"router": router_sha256, "adapters": cards}, sort_keys=True)
    return {"router_and_adapters_sha256": hashlib.sha256(made_of.encode()).hexdigest()}


def plan(
    tasks: Sequence[Benchmark], pack: Pack | None, columns: Sequence[Column], data: Path, wanted: Wanted | None = None
) -> list[Cell]:
    """The cells in order of importance: each task under the base and its own adapter, then the others, then "auto".

    Args:
        pack: None if an endpoint answers.

    Raises:
        InputError: the data of some task is missing or damaged, or samples are asked of tasks that take one answer.
    """
    wanted = wanted or Wanted()
    if wanted.decoding is not None and not any(task.takes_samples for task in tasks):
        names = ", ".join(task.name for task in tasks)
        raise InputError(f"samples are asked for, but one answer to each item is scored by {names}")
    template = pack_template(pack) if pack is not None else None
    dated = _dated_prompt_sha256(template, wanted.day)
    problems: list[str] = []
    cells: list[Cell] = []
    for task in tasks:
        try:
            items = task.items(data)
        except InputError as error:
            problems += error.problems or [str(error)]
            continue
        items_hash = items_sha256(items)
        decoding = wanted.decoding_of(task)
        per_item = 1
        if not decoding.greedy:
            items, per_item = sampled(items, decoding.samples), decoding.samples
        cap = wanted.max_tokens or task.max_tokens
        for column in columns:
            # Plain text is asked without the template
            asked = any(item.raw is None for item in items)
            identity = _identity(task, items_hash, pack, column, cap, decoding, wanted.seed, dated if asked else None)
            form = _form(template, column) if asked else None
            if form is not None:
                identity = {**identity, "thinking": list(form)}
            if asked and wanted.template_args:
                identity = {**identity, "template_args": dict(wanted.template_args)}
            cell = Cell(task, column, items, len(items), cap, identity, decoding, wanted.seed)
            is_other = column.adapter is not None and not cell.is_own
            limit = wanted.limit_others if is_other and wanted.limit_others is not None else wanted.limit
            n = len(items) if limit is None else min(limit * per_item, len(items))
            if n:
                cells.append(dataclasses.replace(cell, n=n, part=wanted.part, template_args=wanted.template_args))
    if problems:
        raise InputError("data of the tasks is missing or damaged", where=data, problems=problems, hint="--data DIR")
    return sorted(
        cells, key=lambda cell: 2 if cell.column.is_auto else 1 if cell.adapter is not None and not cell.is_own else 0
    )
