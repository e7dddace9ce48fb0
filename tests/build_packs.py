"""What tests of packs share: adapters to be packed, and what lies in a folder."""

from slm_edge.edge.pack.write import NewAdapter

HUB = {"kind": "hub", "repo": "someone/tiny", "file": "tiny.gguf", "revision": "main"}


def new(made, *names):
    return [NewAdapter(name, made / f"{name}.gguf") for name in names]


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }
