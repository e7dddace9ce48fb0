"""A router's file of any content: read rightly, or DamagedError, whatever its zip, arrays and table say."""

import io
import json
import random
import zipfile
import zlib

import numpy as np
import pytest
from build_router import small_router
from slm_edge.edge.errors import DamagedError, UnsupportedError
from slm_edge.edge.router.file import RouterModel, read_router, write_router
from slm_edge.edge.router.router import Router


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Name -> bytes of the members of a right file."""
    path = tmp_path_factory.mktemp("router") / "router.npz"
    write_router(path, small_router())
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(parts, method=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return out.getvalue()


def array(header, data=b""):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def npy(value, **options):
    out = io.BytesIO()
    np.save(out, value, **options)
    return out.getvalue()


def refused(tmp_path, data):
    (tmp_path / "router.npz").write_bytes(data)
    with pytest.raises(DamagedError):
        read_router(tmp_path / "router.npz")


def test_the_right_file_is_read(tmp_path, parts):
    (tmp_path / "router.npz").write_bytes(written(parts))
    model = read_router(tmp_path / "router.npz")
    assert model.tasks == small_router().tasks
    # Also with sides in Fortran's order, as numpy writes transposed arrays
    turned = {**parts, "named.npy": npy(np.asfortranarray(model.named))}
    (tmp_path / "router.npz").write_bytes(written(turned))
    assert (read_router(tmp_path / "router.npz").named == model.named).all()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members_are_not_unpacked(tmp_path, parts, method):
    refused(tmp_path, written(parts, method))


SHAPES = ("(1099511627776, 9)", "(9" + "9" * 40 + ",)", "(-1,)", "(" + "(" * 90 + ",)", "(3,", "3", "(0x3,)", "(1e3,)")


@pytest.mark.parametrize(
    "header",
    [
        *(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}" for shape in SHAPES),
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<U4', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }; import os",
        "  {'descr'\n\t: \\",
        "'''",
        "[" * 100,
        "",
    ],
)
def test_headers_of_arrays(tmp_path, parts, header):
    refused(tmp_path, written({**parts, "bias.npy": array(header, b"\0" * 16)}))


@pytest.mark.parametrize(
    "meta",
    [
        b"[" * 100_000,
        b'{"format": ' + b"1" * 5_000 + b"}",
        b'{"format": 1e999}',
        b'{"format": 1, "features": {}}',
        b"\xff",
        b"null",
        b"",
    ],
)
def test_tables(tmp_path, parts, meta):
    data = written({**parts, "meta.npy": npy(np.frombuffer(meta, dtype=np.uint8))})
    (tmp_path / "router.npz").write_bytes(data)
    # A table that reads as another version's says so
    with pytest.raises((DamagedError, UnsupportedError)):
        read_router(tmp_path / "router.npz")


ODD = (None, 1, "x", [], {}, [1], [["a"]], {"a": "b"}, {"a": [float("nan")]}, float("nan"), 10**200, True, "\ud800")


@pytest.mark.parametrize("key", ["tasks", "temperature", "thresholds", "added", "about"])
def test_values_of_the_table(tmp_path, parts, key):
    start = parts["meta.npy"].index(b"\n") + 1
    table = json.loads(parts["meta.npy"][start:])
    for value in ODD:
        changed = json.dumps({**table, key: value}).encode()
        data = written({**parts, "meta.npy": npy(np.frombuffer(changed, dtype=np.uint8))})
        (tmp_path / "router.npz").write_bytes(data)
        try:
            model = read_router(tmp_path / "router.npz")
        except DamagedError:
            continue
        json.dumps(dict(model.about), allow_nan=False)
        Router(model).choose("How many legs have 3 cats?", explain=True).as_dict()


def test_other_members(tmp_path, parts):
    for member in (b"no array", npy(np.array([object()]), allow_pickle=True), npy(np.array(["a"])), b""):
        refused(tmp_path, written({**parts, "slots.npy": member}))
        refused(tmp_path, written({**parts, "meta.npy": member}))
    refused(tmp_path, written({name: data for name, data in parts.items() if name != "background.npy"}))
    for name in ("bias.npy", "named.npy", "slots_scale.npy"):
        for value in (np.inf, np.nan, 3e38):
            good = np.load(io.BytesIO(parts[name]))
            refused(tmp_path, written({**parts, name: npy(np.full_like(good, value))}))


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b"3", b"{}", b'{"a": 1}', b"[1]", b"[{}]", b'["a"]', b"[[]]", b"\xff", b'[{"0": 1}]']
)
def test_background_prompts(text):
    model = small_router()
    for data in (zlib.compress(text), zlib.compress(text)[:-3], text or b"x"):
        odd = RouterModel(**{**vars(model), "background": data})
        try:
            odd.prompts()
        except DamagedError:
            continue
        assert text == b"{}"


def test_random_changes(tmp_path, parts):
    rng = random.Random(3)
    whole = written(parts)
    places = [
        at for mark in (b"PK\x01\x02", b"PK\x05\x06", b"NUMPY", b"{'descr", b'"format') for at in [whole.find(mark)]
    ]
    n_refused = 0
    for _ in range(150):
        data = bytearray(whole)
        at = rng.choice([*places, rng.randrange(len(data))])
        for _ in range(rng.randrange(1, 9)):
            data[min(at + rng.randrange(60), len(data) - 1)] = rng.randrange(256)
        (tmp_path / "router.npz").write_bytes(data)
        try:
            Router(read_router(tmp_path / "router.npz")).choose("How many legs have 3 cats?").as_dict()
        except (DamagedError, UnsupportedError):
            n_refused += 1
    assert n_refused > 50
