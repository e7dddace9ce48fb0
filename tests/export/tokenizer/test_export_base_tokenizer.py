"""The exported byte-level tokenizer against the checkpoint's own: Hugging Face tokenizers are the reference."""

import json

import pytest
import transformers
from build_hf import CHATML, SPECIALS, add_bos_processor, tiny_checkpoint, tiny_tokenizer
from build_tokenizers import NUMBERS, assert_equal_everywhere, exported, odd_texts
from slm_edge.edge.errors import InputError, UnsupportedError
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.llama.vocab import Vocab
from slm_edge.export.tokenizer.corpus import ODD, PROSE
from slm_edge.export.tokenizer.pretokenizer import MADE_FROM, Difference, find_pretokenizer
from slm_edge.export.tokenizer.tokenizer import read_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "smollm", "gpt-2"])
def test_the_right_pretokenizer_is_found(tmp_path, pre):
    tokenizer = tiny_tokenizer(pre, 1200, [*PROSE, *ODD, *NUMBERS])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = read_tokenizer(tmp_path, 1200, {})
    found = find_pretokenizer(read, "llama")
    assert found.name == pre
    assert found.differences == ()
    assert found.n_texts > 700


def test_a_tokenizer_that_llama_cpp_has_not_is_refused_with_the_differences(tmp_path):
    folder = tiny_checkpoint(tmp_path / "hf")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    odd = pre_tokenizers.Split(Regex("[aeiou]"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([odd, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(UnsupportedError, match="does not tokenize as") as caught:
        exported(tmp_path)
    assert len(caught.value.problems) == 5
    assert "--pre-tokenizer" in caught.value.hint
    assert not (tmp_path / "base.gguf").exists()
    path, result = exported(tmp_path, pre_tokenizer="gpt-2")
    assert GgufFile.open(path).get("tokenizer.ggml.pre") == "gpt-2"
    assert "texts differently" in result.notes[0]


PADDING = {
    **{"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None},
    **{"pad_id": 0, "pad_type_id": 0, "pad_token": SPECIALS[0]},
}
TRUNCATION = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}


@pytest.mark.parametrize("left", [{"padding": PADDING}, {"truncation": TRUNCATION}], ids=["padding", "truncation"])
def test_padding_and_truncation_left_by_a_training_script(tmp_path, left):
    folder = tiny_checkpoint(tmp_path / "hf")
    plain = exported(tmp_path, "plain.gguf")[0].read_bytes()
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | left))
    assert exported(tmp_path)[0].read_bytes() == plain


def test_other_kinds_are_refused(tmp_path):
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedError, match="WordPiece"):
        read_tokenizer(tmp_path, 2, {})
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        read_tokenizer(tmp_path, 2, {})


@pytest.mark.parametrize("adds_bos", [False, True])
def test_bos_is_added_as_the_tokenizer_does(tmp_path, adds_bos):
    folder = tiny_checkpoint(tmp_path / "hf")
    if adds_bos:
        add_bos_processor(folder)
    path, _ = exported(tmp_path)
    assert GgufFile.open(path).get("tokenizer.ggml.add_bos_token") is adds_bos
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    with Vocab.open(path) as vocab:
        assert vocab.encode("Hello 12", add_bos=True) == reference("Hello 12").input_ids


def test_special_tokens_and_ends(tmp_path):
    folder = tiny_checkpoint(tmp_path / "hf")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["<tool>", "[stop]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    # two more rows than tokens: the embedding is padded
    tiny_checkpoint(tmp_path / "padded", vocab_size=388)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "padded" / name).replace(folder / name)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 385]}))
    path, _ = exported(tmp_path)
    file = GgufFile.open(path)
    types, tokens = file.get("tokenizer.ggml.token_type"), file.get("tokenizer.ggml.tokens")
    assert tokens[384:] == ["<tool>", "[stop]", "[PAD386]", "[PAD387]"]
    assert types[:4] == [3, 3, 3, 1]
    assert types[384:] == [4, 4, 5, 5]
    assert file.get("tokenizer.ggml.eos_token_id") == 2
    assert file.get("tokenizer.ggml.padding_token_id") == 0
    with Vocab.open(path) as vocab:
        assert [index for index in range(388) if vocab.is_end(index)] == [0, 2, 385]
        assert vocab.encode(f"a{SPECIALS[1]}b<tool>") == tokenizer.encode(f"a{SPECIALS[1]}b<tool>").ids


def test_more_tokens_than_rows(tmp_path):
    folder = tiny_checkpoint(tmp_path / "hf")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["<more>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(InputError, match="only 384 rows") as caught:
        exported(tmp_path)
    assert caught.value.problems == ("no row for '<more>'",)


TALK = "{% for m in messages %}{{ m.content }}{% endfor %}"


def test_chat_template_places(tmp_path):
    folder = tiny_checkpoint(tmp_path / "hf", chat_template=None)

    def template(**options):
        path, result = exported(tmp_path, force=True, **options)
        return GgufFile.open(path), result

    file, result = template()
    assert file.get("tokenizer.chat_template") is None
    assert any("--chat-template" in line for line in result.notes)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": f"list{TALK}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    file, _ = template()
    assert file.get("tokenizer.chat_template") == f"list{TALK}"
    assert file.get("tokenizer.chat_templates") == ["tool_use"]
    assert file.get("tokenizer.chat_template.tool_use") == "tools"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": f"json{TALK}"}))
    assert template()[0].get("tokenizer.chat_template") == f"json{TALK}"
    (folder / "chat_template.jinja").write_text(CHATML)
    assert template()[0].get("tokenizer.chat_template") == CHATML
    mine = tmp_path / "mine.jinja"
    mine.write_text(f"mine{TALK}")
    assert template(chat_template=mine)[0].get("tokenizer.chat_template") == f"mine{TALK}"
    mine.write_text("{% if %}")
    with pytest.raises(InputError, match="not valid"):
        template(chat_template=mine)


def test_the_tokenizer_that_llama_cpp_copied_inexactly_is_taken_and_said(tmp_path):
    """Mistral Nemo's splitting: llama.cpp's "tekken" lacks combining marks."""
    folder = tiny_checkpoint(tmp_path / "hf", vocab_size=1200)
    tokenizer = tiny_tokenizer("qwen2", 1200)
    (pattern,) = MADE_FROM
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])
    tokenizer.normalizer = None
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=list(SPECIALS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([*PROSE, *ODD, *["Ankara'da ve Adana'da"] * 20], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    path, result = exported(tmp_path)
    assert result.pre_tokenizer == GgufFile.open(path).get("tokenizer.ggml.pre") == "tekken"
    assert any("'tekken' tokenizes" in note for note in result.notes)


def test_the_first_difference_is_shown():
    assert "from token 2 on" in str(Difference("t", [1, 2, 3], [1, 2]))
    assert "from token 0 on" in str(Difference("t", [1], [2]))


@pytest.mark.reference
@pytest.mark.parametrize(
    ("folder", "config", "architecture", "pre"),
    [
        ("tokenizer_qwen2.5", "Qwen2.5-0.5B-Instruct", "qwen2", "qwen2"),
        ("tokenizer_llama3", "Llama-3.2-1B-Instruct", "llama", "llama-bpe"),
    ],
)
def test_real_tokenizers(tmp_path, shared_data, folder, config, architecture, pre):
    raw = json.loads((shared_data / "configs" / config / "config.json").read_text())
    read = read_tokenizer(shared_data / folder, raw["vocab_size"], raw)
    found = find_pretokenizer(read, architecture)
    assert found.name == pre
    path = vocabulary_only(tmp_path, read, found, architecture)
    assert_equal_everywhere(path, read.encode, [text for text in real_texts(shared_data) if is_composed(text)])


@pytest.mark.reference
def test_smollm2_tokenizer(tmp_path, shared_data, starter_base):
    """SmolLM2's vocabulary, rebuilt as a Hugging Face tokenizer: single digits, then GPT-2's splitting."""
    real = GgufFile.open(starter_base)
    tokens, types = real.get("tokenizer.ggml.tokens"), real.get("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in real.get("tokenizer.ggml.merges")]
    plain = {token: index for index, token in enumerate(tokens) if types[index] == 1}
    control = [token for index, token in enumerate(tokens) if types[index] == 3]
    tokenizer = Tokenizer(models.BPE(plain | {token: tokens.index(token) for token in control}, merges))
    tokenizer.add_special_tokens(control)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = read_tokenizer(tmp_path, len(tokens), {})
    found = find_pretokenizer(read, "llama")
    assert found.name == "smollm"
    assert read.keys["tokenizer.ggml.tokens"].value == tokens
    assert read.keys["tokenizer.ggml.token_type"].value == types
    assert read.keys["tokenizer.ggml.merges"].value == real.get("tokenizer.ggml.merges")
    # the published GGUF itself, made by others, agrees with the rebuilt tokenizer too
    assert_equal_everywhere(starter_base, read.encode, real_texts(shared_data))


def vocabulary_only(tmp_path, read, found, architecture):
    from slm_edge.export.files.gguf_writer import text, write_gguf

    path = tmp_path / "vocab.gguf"
    write_gguf(path, {"general.architecture": text(architecture)} | read.keys | found.keys(), [])
    return path


def is_composed(line):
    import unicodedata

    return unicodedata.is_normalized("NFC", line)


def real_texts(shared_data):
    """Prompts, code and prose that the export never saw."""
    lines = (shared_data / "wikitext2" / "valid.txt").read_text().splitlines()[:300]
    for name in ("gsm8k/train.jsonl", "mbpp/mbpp.jsonl", "dolly/summarization.jsonl"):
        with (shared_data / name).open() as stream:
            for row, _ in zip(stream, range(150), strict=False):
                lines += [value for value in json.loads(row).values() if isinstance(value, str)]
    return [*lines, *odd_texts()]
