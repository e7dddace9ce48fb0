"""The topics and arrows of `test_layers.py` as docs/how-it-works.md shows them; `python tests/build_topics.py`."""

import ast
import sys
from pathlib import Path

from test_layers import FOLDERS, ROOT, TOPICS


def sentence(path: Path) -> str:
    """The first sentence of what a topic says about itself."""
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return said.partition("\n")[0].removesuffix(".").replace("|", "/")


def topics() -> str:
    """A table for each folder: its topics, lowest first, what each is, and what each may import of the folder."""
    lines = []
    for folder, below in TOPICS.items():
        also = f", and of {', '.join(f'`{name}/`' for name in FOLDERS[folder].split())}" if FOLDERS[folder] else ""
        lines += [f"**{folder}/**", "", f"| topic | what it is | imports of `{folder}/`{also} |", "|---|---|---|"]
        for topic, arrows in below.items():
            file = ROOT / folder / f"{topic}.py"
            init = ROOT / folder / topic / "__init__.py"
            name, path = (f"{topic}.py", file) if file.is_file() else (f"{topic}/", init)
            shown = "everything" if arrows == "*" else ", ".join(arrows.split()) or "nothing"
            lines.append(f"| `{name}` | {sentence(path)} | {shown} |")
        lines.append("")
    return "\n".join(lines).strip()


if __name__ == "__main__":
    sys.stdout.write(topics() + "\n")
