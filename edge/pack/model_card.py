"""The page of a pack on a hub, made from its task cards and what was measured with them.

text = model_card(Pack.open("my-pack"), "hf:owner/my-pack")
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ..written import human_bytes
from .pack import Pack, PackedAdapter

# How the hub calls the licences that cards name most
_LICENCES: Final = {
    "apache-2.0": "apache-2.0",
    "mit": "mit",
    "cc0-1.0": "cc0-1.0",
    "cc-by-4.0": "cc-by-4.0",
    "cc-by-sa-3.0": "cc-by-sa-3.0",
    "cc-by-sa-4.0": "cc-by-sa-4.0",
}
_MOST_LETTERS: Final = 300


def model_card(pack: Pack, reference: str) -> str:
    """The Markdown of a README.md with the hub's header.

    Args:
        reference: how the pack is pulled from where it will lie.
    """
    lines = [*_header(pack), f"# {_plain(pack.name)}", ""]
    lines += [
        f"A pack for [slm-edge](https://pypi.org/project/slm-edge/): {len(pack.adapters)} task adapters for one small "
        f"base model, {_plain(pack.base.file_name)} ({human_bytes(pack.base.size_bytes)}).",
        "",
        f"    slm-edge pull {reference}",
        f'    slm-edge run {reference} "Hello"',
        "",
        "## Adapters",
        "",
        "| adapter | task | size | what it is for |",
        "|---|---|---|---|",
    ]
    for one in pack.adapters.values():
        default = " (default)" if one.name == pack.default_adapter else ""
        cells = (one.name + default, one.card.task, human_bytes(one.size_bytes), one.card.description or "")
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    lines += ["", *_scores(pack), "## Files", ""]
    lines += [
        f"- base: `{_code(pack.base.file_name)}`, sha256 `{pack.base.sha256}`, fingerprint `{pack.base.fingerprint}`"
    ]
    lines += [f"- {_plain(one.name)}: sha256 `{one.sha256}`" for one in pack.adapters.values()]
    lines += _data(pack)
    return "\n".join(lines) + "\n"


def _header(pack: Pack) -> list[str]:
    """What the hub reads: JSON texts are YAML texts."""
    licences = {one.card.licence for one in pack.adapters.values() if one.card.licence}
    known = _LICENCES.get(next(iter(licences)).lower()) if len(licences) == 1 else None
    bases = [source["repo"] for source in pack.base.sources if source["kind"] == "hub"]
    lines = [
        "---",
        "library_name: slm-edge",
        "tags:",
        "- slm-edge",
        "- gguf",
        "- lora",
        "pipeline_tag: text-generation",
    ]
    lines += [f"license: {known or 'other'}"] if licences else []
    lines += [f"base_model: {json.dumps(bases[0])}"] if bases else []
    return [*lines, "---", ""]


def _scores(pack: Pack) -> list[str]:
    rows = [row for one in pack.adapters.values() for row in _score_rows(one)]
    if not rows:
        return ["## Scores", "", "Nothing was measured with these adapters yet (`slm-edge bench scores`).", ""]
    head = [
        "## Scores",
        "",
        "Measured by `slm-edge bench scores`; in brackets the 95 % interval, beside it the base alone.",
    ]
    return [
        *head,
        "",
        "| adapter | test set | items | measure | score | base |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _score_rows(one: PackedAdapter) -> Iterator[str]:
    for test_set, measured in one.card.scores.items():
        if not isinstance(measured, Mapping):
            continue
        for measure, value in measured.items():
            if isinstance(value, Mapping) and isinstance(value.get("value"), int | float):
                between = f" ({_number(value.get('low'))} to {_number(value.get('high'))})" if "low" in value else ""
                score, base = f"{_number(value['value'])}{between}", _number(value.get("base"))
                cells = (one.name, test_set, str(measured.get("n", "")), measure, score, base)
                yield f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else ""


def _data(pack: Pack) -> list[str]:
    """Licences and training data, as the cards name them."""
    rows = []
    for one in pack.adapters.values():
        said = [
            f"{key}: {_plain(text)}" for key, text in (("licence", one.card.licence), ("data", one.card.data)) if text
        ]
        rows += [f"- {_plain(one.name)}: {'; '.join(said)}"] if said else []
    return ["", "## Licences and data", "", *rows] if rows else []


def _plain(text: str) -> str:
    """A text on one line in which Markdown and HTML mean nothing."""
    line = " ".join(text.split())[:_MOST_LETTERS]
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|" else letter for letter in line)


def _cell(text: str) -> str:
    return _plain(str(text))


def _code(text: str) -> str:
    return text.replace("`", "'")
