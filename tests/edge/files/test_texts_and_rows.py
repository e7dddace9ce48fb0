"""Texts, JSON and rows as others write them: cut where lines end, and refused by one message with the place."""

import gzip
import json

import pytest
from slm_edge.edge.errors import InputError
from slm_edge.edge.files.atomic import write_json
from slm_edge.edge.files.journal import line_of, rows_of
from slm_edge.edge.files.read import decode, is_text, json_rows, lines_of, read_json, read_text

# All that str.splitlines cuts at, but LF: each may stand raw in a JSON text (JSON wants only C0 escaped)
SEPARATORS = "\u2028\u2029\x85\x7f"
PLAIN_SEPARATORS = SEPARATORS + "\v\f\x1c\x1d\x1e"


def test_rows_are_cut_at_lf_alone(tmp_path):
    rows = [{"prompt": f"one{letter}two"} for letter in SEPARATORS] + ["a text", 3]
    data = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows).encode()
    (tmp_path / "rows.jsonl").write_bytes(data)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(data))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.json"):
        assert list(json_rows(tmp_path / name)) == list(enumerate(rows, 1))


def test_a_journal_is_cut_at_lf_alone(tmp_path):
    rows = [{"text": f"a{letter}b\ud83d"} for letter in PLAIN_SEPARATORS]
    data = b"".join(map(line_of, rows))
    assert rows_of(data + b'{"half', tmp_path) == (rows, len(data))


def test_lines_of_plain_text():
    assert lines_of("a\fb\x0bc\u2028d\r\ne\n") == ["a\fb\x0bc\u2028d", "e"]
    assert lines_of("") == []


def test_numbers_of_lines_count_empty_ones(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n{"a": }\n')
    with pytest.raises(InputError, match="line 3 is not valid JSON"):
        list(json_rows(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ("1" * 5_000, "a number of 5000 digits"),
        ("-" + "1" * 301, "a number of 302 digits"),
        ("", "not valid JSON"),
        ('{"a": 1} {"b": 2}', "not valid JSON"),
        ("nul", "not valid JSON"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "Git LFS pointer"),
    ],
)
def test_json_that_is_none(tmp_path, text, reason):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=reason):
        read_json(tmp_path / "a.json")


def test_json_of_real_files(tmp_path):
    """What transformers writes for "no limit", a byte-order mark, and numbers that only a float holds."""
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"most": 10**30, "x": 1e300}).encode())
    assert read_json(tmp_path / "a.json") == {"most": 10**30, "x": 1e300}


def test_json_with_half_a_surrogate_is_written(tmp_path):
    data = {"name": "n\ud800", "other": "ä"}
    write_json(tmp_path / "a.json", data)
    assert json.loads((tmp_path / "a.json").read_bytes().decode("utf-8")) == data


def test_files_that_are_no_texts(tmp_path):
    (tmp_path / "latin").write_bytes(b"one\ntwo\nGr\xf6\xdfe\n")
    with pytest.raises(InputError, match="line 3, byte 10"):
        read_text(tmp_path / "latin")
    for path, reason in (
        (tmp_path, "is a folder"),
        (tmp_path / "no", "no such file"),
        (tmp_path / ("n" * 300), "long"),
    ):
        with pytest.raises(InputError, match=reason):
            read_text(path)
    with pytest.raises(InputError, match="no name of a file"):
        read_text(tmp_path / "a\0b")
    with pytest.raises(InputError, match="too large"):
        read_text(tmp_path / "latin", most_bytes=5)
    (tmp_path / "bad.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 100)[:-9])
    with pytest.raises(InputError, match="gzip"):
        list(json_rows(tmp_path / "bad.jsonl.gz"))
    assert decode(b"\xef\xbb\xbfa", "x") == "a"


def test_what_is_a_text():
    assert is_text("") and is_text("\U0001f600\0")
    assert not any(map(is_text, ("\ud83d", "a\udfff", None, 3, b"a", ["a"])))
