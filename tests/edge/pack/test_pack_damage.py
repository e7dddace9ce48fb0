"""Packs that were changed, by accident or on purpose: every byte is checked, and no path leads out."""

import json
import shutil

import pytest
from build_packs import tree
from slm_edge.edge.errors import DamagedError, InputError, SlmEdgeError, UnsupportedError
from slm_edge.edge.pack.manifest import render
from slm_edge.edge.pack.pack import Pack, verify_folder


def test_every_changed_byte_is_found(pack):
    """Each file, at its beginning, middle and end, one bit each."""
    for name, data in tree(pack.folder).items():
        if data is None:
            continue
        path = pack.folder / name
        for at in {0, len(data) // 2, len(data) - 1}:
            changed = bytearray(data)
            changed[at] ^= 1
            path.write_bytes(changed)
            with pytest.raises(DamagedError) as caught:
                verify_folder(pack.folder)
            assert name in str(caught.value)
        path.write_bytes(data)
    verify_folder(pack.folder)


def test_every_bit_of_pack_json_is_sealed(pack):
    path = pack.folder / "pack.json"
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        with pytest.raises(SlmEdgeError):
            verify_folder(pack.folder)
    path.write_bytes(data.replace(b"\n", b"\r\n"))
    with pytest.raises(DamagedError):
        verify_folder(pack.folder)


def test_all_differences_are_listed_at_once(pack, tmp_path):
    (pack.folder / "tiny.gguf").write_bytes(b"GGUF")
    (pack.folder / "adapters" / "math.gguf").unlink()
    (pack.folder / "extra.txt").write_text("x")
    (pack.folder / "empty").mkdir()
    (pack.folder / "link").symlink_to(tmp_path)
    with pytest.raises(DamagedError) as caught:
        verify_folder(pack.folder)
    assert sorted(problem.split(": ")[0] for problem in caught.value.problems) == [
        "adapters/math.gguf",
        "empty/",
        "extra.txt",
        "link",
        "tiny.gguf",
    ]
    assert caught.value.exit_code == 5


def test_opening_finds_what_can_be_told_at_once(pack):
    (pack.folder / "adapters" / "math.json").write_text("{}")
    (pack.folder / "adapters" / "code.gguf").write_bytes(b"GGUF")
    with pytest.raises(DamagedError) as caught:
        Pack.open(pack.folder)
    assert set(caught.value.problems) == {
        f"adapters/code.gguf: has 4 bytes, not {pack.adapters['code'].size_bytes}",
        "adapters/math.json: changed",
    }


def test_an_adapters_bytes_can_be_checked_alone(pack):
    pack.check_adapter_bytes("math")
    path = pack.adapters["math"].path
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(DamagedError, match="its bytes changed"):
        pack.check_adapter_bytes("math")


def rewritten(pack, change):
    """Writes pack.json anew with a valid seal, as someone who means harm would."""
    data = json.loads((pack.folder / "pack.json").read_text())
    change(data)
    (pack.folder / "pack.json").write_text(render(data))


PATHS = ["../secret", "/etc/passwd", "a/../../secret", "C:\\x", "a\\b", "a//b", ".", "..", "", "a/.hidden"]


PATHS += ["x\0y", "pack.json"]


@pytest.mark.parametrize("name", PATHS)
def test_paths_that_lead_out_are_refused(pack, name):
    def change(data):
        data["files"][name] = data["adapters"][0]["sha256"]
        data["adapters"][0]["file"] = name

    rewritten(pack, change)
    with pytest.raises(InputError, match="is not valid") as caught:
        Pack.open(pack.folder)
    assert f"{name!r} is not a path that a pack may name" in caught.value.problems


@pytest.mark.parametrize("what", ["adapters/math.gguf", "adapters"])
def test_symbolic_links_are_refused(pack, tmp_path, what):
    real = pack.folder / what
    shutil.move(real, tmp_path / "outside")
    real.symlink_to(tmp_path / "outside")
    with pytest.raises(DamagedError, match="symbolic link"):
        Pack.open(pack.folder)
    with pytest.raises(DamagedError, match="symbolic link"):
        verify_folder(pack.folder)


def _set(path, value):
    def change(data):
        *way, last = path
        for step in way:
            data = data[step]
        data[last] = value

    return change


WRONG = {
    "an unknown key": (_set(["colour"], "red"), InputError, "unknown key 'colour'"),
    "an unknown key of the base": (_set(["base", "x"], 1), InputError, "base has the unknown key 'x'"),
    "an unknown key of an adapter": (_set(["adapters", 0, "x"], 1), InputError, "an adapter has the unknown key 'x'"),
    "a newer schema": (_set(["schema"], 2), UnsupportedError, "schema version 2"),
    "a schema as text": (_set(["schema"], "1"), UnsupportedError, "schema version '1'"),
    "files as a list": (_set(["files"], []), InputError, "files are not a table"),
    "adapters as a table": (_set(["adapters"], {}), InputError, "adapters are not a list"),
    "an adapter as text": (_set(["adapters"], ["math"]), InputError, "an adapter is not a table"),
    "a name with a slash": (_set(["adapters", 0, "name"], "a/b"), InputError, "'a/b' cannot be the name"),
    "a name as a number": (_set(["adapters", 0, "name"], 5.5), InputError, "default adapter 'math' is not among"),
    "two of one name": (_set(["adapters", 1, "name"], "math"), InputError, "'math' is listed twice"),
    "a default that is not there": (_set(["default_adapter"], "x"), InputError, "default adapter 'x'"),
    "a sha256 that is none": (_set(["base", "sha256"], "abc"), InputError, "given in two ways"),
    "a fingerprint that is none": (_set(["base", "fingerprint"], None), InputError, "fingerprint is not a sha256"),
    "a size that is none": (_set(["base", "size_bytes"], -1), InputError, "size_bytes is not a size"),
    "a size as a flag": (_set(["adapters", 0, "size_bytes"], True), InputError, "size_bytes is not a size"),
    "a base name with a path": (_set(["base", "file_name"], "../tiny.gguf"), InputError, "not the name of a GGUF file"),
    "an unknown source": (_set(["base", "sources", 0, "kind"], "ftp"), InputError, "of the kind 'ftp'"),
    "a source with an option": (
        _set(["base", "sources", 0, "repo"], "--i"),
        InputError,
        "repo is '--i'",
    ),
    "a name that is none": (_set(["name"], 3), InputError, "name is not a text"),
    "a name of half a letter": (_set(["name"], "\ud800"), None, ""),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_pack_json_is_refused(pack, name):
    change, error, reason = WRONG[name]
    rewritten(pack, change)
    if error is None:
        assert Pack.open(pack.folder, verify=True)
        return
    with pytest.raises(error) as caught:
        Pack.open(pack.folder)
    assert reason in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"schema": NaN}', "\xff", "[" * 100000])
def test_what_is_no_pack_json_is_refused(pack, text):
    (pack.folder / "pack.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(SlmEdgeError):
        Pack.open(pack.folder)
    with pytest.raises(SlmEdgeError):
        verify_folder(pack.folder)


def test_no_pack(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        Pack.open(tmp_path / "none")
    with pytest.raises(InputError, match=r"it has no pack\.json"):
        Pack.open(tmp_path)
