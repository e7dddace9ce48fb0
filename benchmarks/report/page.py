"""Tables of reports inside a page: what stands between two marks is written from a report.json.

    python -m slm_edge.benchmarks.report.page docs/scores.md

A block begins with `<!-- tables of PATH/report.json: matrix choice own -->`, with the path from the checkout's top, and
ends with `<!-- end of tables -->`. `own` is each adapter against the base on the task that it was made for.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from ...edge.files.atomic import atomic_file
from .text import choice, comparisons, matrix

ROOT: Final = Path(__file__).parents[2]
END: Final = "<!-- end of tables -->"
BLOCK: Final = re.compile(rf"(<!-- tables of (\S+): ([\w ]+) -->\n).*?{END}", re.DOTALL)
TABLES: Final[dict[str, Callable[[Mapping[str, Any]], list[str]]]] = {
    "matrix": matrix,
    "choice": choice,
    "own": lambda report: comparisons(report, own=True),
}


def filled(text: str) -> str:
    """A page with the tables of its blocks as their reports have them."""

    def block(found: re.Match[str]) -> str:
        report = json.loads((ROOT / found[2]).read_text(encoding="utf-8"))
        lines = [line for name in found[3].split() for line in TABLES[name](report)]
        return f"{found[1]}{chr(10).join(lines).strip()}\n{END}"

    return BLOCK.sub(block, text)


@click.command()
@click.argument("page", type=click.Path(path_type=Path))
def main(page: Path) -> None:
    """Write the tables of PAGE again, from the reports that it names."""
    text = filled(page.read_text(encoding="utf-8"))
    with atomic_file(page) as aside:
        aside.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
