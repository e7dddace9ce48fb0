"""Texts become the token ids that llama.cpp gives them, whatever their length, and never end the process."""

import ctypes
import random
import subprocess
import sys

import pytest
from build_gguf import spm_keys, tiny_base
from gguf import GGUFValueType as Kind
from slm_edge.edge.errors import InputError
from slm_edge.edge.llama.text_pieces import (
    LSTRIP,
    MOST_LETTERS,
    RSTRIP,
    SpecialToken,
    Spelled,
    cut_long_runs,
    pieces_of,
)
from slm_edge.edge.llama.vocab import SHORT_LETTERS, Vocab

# The kinds of letters, over which pre-tokenizers recurse each in its own way
RUNS = ("1", "a", "A", " ", "!", "的", "\n", "a\u0301", "a b ", "\t ", "$", "…")
# Pre-tokenizers of llama.cpp with an expression of each kind that goes through std::regex, and one that does not
PRE = ["default", "tekken", "gpt-4o", "deepseek-llm", "falcon", "bloom", "superbpe", "exaone-moe", "qwen2"]
N_LETTERS = 30_000


def by_llama(vocab, text, special=True, add_bos=False):
    """llama.cpp's own call."""
    data = text.encode()
    ids = (ctypes.c_int32 * (len(data) + 8))()
    found = vocab._llama.llama_tokenize(vocab.handle, data, len(data), ids, len(ids), add_bos, special)
    return list(ids[:found])


def some_texts(specials):
    """Texts of words, special tokens, their parts, and spaces."""
    rng = random.Random(5)
    parts = [*specials, *(text[:-1] for text in specials), *(text[1:] for text in specials)]
    parts += ["hello", " the", "  ", "\n", "<", "|>", "é", "你好", "s", "12", "'s", "\t"]
    return ["", " ", *("".join(rng.choices(parts, k=rng.randrange(1, 14))) for _ in range(400))]


@pytest.mark.parametrize("kind", ["bpe", "bpe with bos", "spm", "spm without space"])
@pytest.mark.parametrize("length", ["short", "long"])
def test_ids_are_those_of_llama_cpp(kind, length, tmp_path, monkeypatch):
    """Where a text is long, special tokens are looked for here and not by llama.cpp."""
    if length == "long":
        monkeypatch.setattr("slm_edge.edge.llama.vocab.SHORT_BYTES", -1)
    keys = spm_keys(kind == "spm") if kind.startswith("spm") else {}
    with Vocab.open(tiny_base(tmp_path / "b.gguf", keys=keys, add_bos=kind != "bpe")) as vocab:
        specials = [token.text.decode() for token in vocab.special_tokens]
        assert {"<|im_start|>", "<|im_end|>"} < set(specials)
        for text in some_texts(specials):
            for add_bos in (False, True):
                assert vocab.encode(text, add_bos=add_bos) == by_llama(vocab, text, True, add_bos), text
                plain = vocab.encode(text, special=False, add_bos=add_bos)
                theirs = by_llama(vocab, text, False, add_bos)
                # llama.cpp merges the letters of "</s>" to the control token itself.
                if vocab.control_ids.isdisjoint(theirs[add_bos:]):
                    assert plain == theirs, text


def test_a_plain_text_never_merges_to_a_control_token(tmp_path):
    with Vocab.open(tiny_base(tmp_path / "b.gguf", keys=spm_keys())) as vocab:
        assert vocab.eos_id in by_llama(vocab, "he</s>he", special=False)
        ids = vocab.encode("he</s>he", special=False)
        assert vocab.control_ids.isdisjoint(ids)
        assert vocab.decode(ids) == " he</s>he"


@pytest.mark.parametrize("pre", PRE)
def test_long_runs_do_not_end_the_process(pre, tmp_path):
    """std::regex recurses over each letter of a match: 26,600 fill the stack."""
    base = tiny_base(tmp_path / "b.gguf", keys={"tokenizer.ggml.pre": (pre, Kind.STRING)})
    code = (
        "import sys\n"
        "from slm_edge.edge.llama.vocab import Vocab\n"
        "with Vocab.open(sys.argv[1]) as vocab:\n"
        f"    for run in {RUNS!r}:\n"
        f"        text = 'x' + run * ({N_LETTERS} // len(run))\n"
        "        assert vocab.decode(vocab.encode(text)) == text, run\n"
        "print('held')\n"
    )
    child = subprocess.run([sys.executable, "-c", code, str(base)], capture_output=True, text=True, check=False)
    assert child.returncode == 0 and child.stdout == "held\n", (child.returncode, child.stderr[-2000:])


def test_llama_cpp_itself_still_dies_of_such_a_run(tmp_path):
    """Or the cuts are no longer needed."""
    base = tiny_base(tmp_path / "b.gguf", keys={"tokenizer.ggml.pre": ("gpt-4o", Kind.STRING)})
    code = (
        "import sys\n"
        "from slm_edge.edge.llama.vocab import Vocab\n"
        "with Vocab.open(sys.argv[1]) as vocab:\n"
        "    vocab._call(b'a' * 400_000)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(base)], capture_output=True, check=False).returncode < 0


def test_cuts_leave_texts_without_long_runs_alone():
    text = "A sentence of words, 12345 numbers (and more)!\n" * 200
    assert list(cut_long_runs(text, "tekken")) == [text]
    assert list(cut_long_runs("a" * 5000, "llama-bpe")) == ["a" * 5000]
    assert SHORT_LETTERS <= MOST_LETTERS
    # Without spaces it is cut where a word ends, which the pre-tokenizer does too.
    parts = list(cut_long_runs("word,other;" * 300, "tekken"))
    assert "".join(parts) == "word,other;" * 300 and max(map(len, parts)) <= MOST_LETTERS
    assert all(part[0] in ",;" for part in parts[1:])


def test_many_special_tokens_cost_no_square(tmp_path):
    """llama.cpp's time grows with their square: 4 s for 40,000."""
    with Vocab.open(tiny_base(tmp_path / "b.gguf")) as vocab:
        start, end = vocab.encode("<|im_start|><|im_end|>")
        assert vocab.encode("<|im_start|>x<|im_end|>" * 20_000) == [start, *vocab.encode("x"), end] * 20_000


def test_a_text_of_more_bytes_than_llama_cpp_counts_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("slm_edge.edge.llama.vocab.MOST_BYTES", 100)
    with Vocab.open(tiny_base(tmp_path / "b.gguf")) as vocab:
        with pytest.raises(InputError, match="101 bytes"):
            vocab.encode("a" * 101)
        assert vocab.encode("a" * 100)


def test_spaces_beside_a_special_token_go_with_it():
    """Tokens may take the spaces to their left or right, as llama.cpp's attributes say (Phi-3's <|end|>)."""
    token = SpecialToken(7, b"<e>", 8 | LSTRIP | RSTRIP)
    assert pieces_of(b"a \n<e>\t b <e>", [token], control=True) == [b"a", 7, b"b", 7]
    assert pieces_of(b"a <e> b", [token], control=False) == [b"a <e> b"]


def test_the_longest_special_token_is_read_first():
    tokens = [SpecialToken(1, b"<<a>", 8), SpecialToken(2, b"<a>", 16), SpecialToken(3, b"x<", 8)]
    assert pieces_of(b"x<<a><a>", tokens, control=True) == [b"x", 1, 2]
    assert pieces_of(b"x<<a><a>", tokens, control=True, breaks=[6], apart={2}) == [b"x", 1, Spelled(b"<a>")]
    assert pieces_of(b"x<<a><a>", tokens, control=True, breaks=[2], apart={1}) == [3, 2, 2]
