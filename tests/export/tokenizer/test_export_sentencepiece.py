"""Exported SentencePiece tokenizers against sentencepiece, and against Hugging Face tokenizers if they came as json."""

import json
from pathlib import Path

import pytest
import sentencepiece
import transformers
from build_hf import edit_config, tiny_checkpoint
from build_tokenizers import NUMBERS, assert_equal_everywhere, exported, odd_texts
from slm_edge.edge.errors import DamagedError, InputError, UnsupportedError
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.llama.vocab import Vocab
from slm_edge.export.tokenizer.corpus import PROSE, sample_texts
from slm_edge.export.tokenizer.sentencepiece_model import SentencePieceModel
from tokenizers import Tokenizer


@pytest.fixture(scope="module")
def sentencepiece_files(tmp_path_factory):
    """A BPE and a unigram SentencePiece model, trained as Llama's was: bytes as fallback, text left as it is."""
    folder = tmp_path_factory.mktemp("spm")
    (folder / "text.txt").write_text("\n".join([*PROSE, *NUMBERS] * 4))
    for kind in ("bpe", "unigram"):
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "text.txt"),
            model_prefix=str(folder / kind),
            model_type=kind,
            vocab_size=900 if kind == "bpe" else 600,
            character_coverage=0.98,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
    return folder


def spm_checkpoint(tmp_path, model_file: Path) -> Path:
    folder = tiny_checkpoint(tmp_path / "hf", vocab_size=900)
    for path in folder.glob("*token*"):
        path.unlink()
    edit_config(folder, bos_token_id=1, eos_token_id=2)
    (folder / "tokenizer.model").write_bytes(model_file.read_bytes())
    return folder


def metaspace(scheme):
    step = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    return {"normalizer": None, "pre_tokenizer": step}


# How a space gets before a text: Llama-2's files; Mistral 0.3's; and those that transformers 5 saves of either.
SPACES = {
    "prepended": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
    },
    "first": metaspace("first"),
    "always": metaspace("always"),
}


def save_llama_tokenizer(folder, spaces):
    """A tokenizer.json of a folder's tokenizer.model, its vocabulary read by transformers."""
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    bos = {"id": "<s>", "ids": [1], "tokens": ["<s>"]}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    special = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    processor = {"type": "TemplateProcessing", "single": [special, first], "pair": [special, first, second]}
    data = json.loads((folder / "tokenizer.json").read_text()) | SPACES[spaces]
    data["post_processor"] = processor | {"special_tokens": {"<s>": bos}}
    (folder / "tokenizer.json").write_text(json.dumps(data))


def test_a_vocabulary_without_bytes_is_refused(tmp_path, sentencepiece_files):
    """llama.cpp would end the process; transformers 5 saves such a file of `LlamaTokenizerFast(vocab_file=…)`."""
    folder = spm_checkpoint(tmp_path, sentencepiece_files / "bpe.model")
    save_llama_tokenizer(folder, "prepended")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"] |= {"vocab": {"<unk>": 0, "<s>": 1, "</s>": 2}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UnsupportedError, match="no token for 256 of the 256 bytes"):
        exported(tmp_path)


def test_sentencepiece_model_alone(tmp_path, sentencepiece_files):
    spm_checkpoint(tmp_path, sentencepiece_files / "bpe.model")
    path, result = exported(tmp_path)
    assert result.pre_tokenizer is None
    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_files / "bpe.model"))
    file = GgufFile.open(path)
    tokens, scores = file.get("tokenizer.ggml.tokens"), file.get("tokenizer.ggml.scores")
    for index in range(reference.get_piece_size()):
        assert tokens[index] == reference.id_to_piece(index)
        assert scores[index] == pytest.approx(reference.get_score(index))
    assert_equal_everywhere(path, reference.encode, [*sample_texts(False), *odd_texts()])


@pytest.mark.parametrize("with_model", [False, True])
def test_llama_tokenizer_json(tmp_path, sentencepiece_files, with_model):
    """The tokenizer.json that transformers makes of a SentencePiece model: Llama-2, TinyLlama, Mistral 0.1."""
    folder = spm_checkpoint(tmp_path, sentencepiece_files / "bpe.model")
    save_llama_tokenizer(folder, "prepended")
    if not with_model:
        (folder / "tokenizer.model").unlink()
    path, _ = exported(tmp_path)
    file = GgufFile.open(path)
    assert file.get("tokenizer.ggml.model") == "llama"
    assert file.get("tokenizer.ggml.add_bos_token") is True
    assert (file.get("tokenizer.ggml.bos_token_id"), file.get("tokenizer.ggml.unknown_token_id")) == (1, 0)
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert_equal_everywhere(
        path, lambda text: reference.encode(text, add_special_tokens=False).ids, [*sample_texts(False), *odd_texts()]
    )


def test_a_sentencepiece_tokenizer_that_differs_can_be_taken_by_name(tmp_path, sentencepiece_files):
    folder = spm_checkpoint(tmp_path, sentencepiece_files / "bpe.model")
    save_llama_tokenizer(folder, "prepended")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["normalizer"]["normalizers"].append({"type": "Replace", "pattern": {"String": "q"}, "content": "g"})
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UnsupportedError, match="differs in") as caught:
        exported(tmp_path)
    assert "--pre-tokenizer default" in str(caught.value)
    with pytest.raises(InputError, match="no pre-tokenizer 'qwen2'"):
        exported(tmp_path, pre_tokenizer="qwen2")
    _, result = exported(tmp_path, pre_tokenizer="default")
    assert any("texts differently" in note for note in result.notes)


def test_a_space_before_the_whole_text_alone(tmp_path, sentencepiece_files):
    """Mistral 0.3's tokenizer.json: Metaspace with "first" puts its space nowhere behind a BOS."""
    folder = spm_checkpoint(tmp_path, sentencepiece_files / "bpe.model")
    save_llama_tokenizer(folder, "first")
    path, result = exported(tmp_path)
    assert GgufFile.open(path).get("tokenizer.ggml.add_space_prefix") is False
    assert any("such as '<s>'" in note for note in result.notes)
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [f"<s>{text}" for text in [*sample_texts(False), *odd_texts()]]
    assert_equal_everywhere(path, lambda text: reference.encode(text, add_special_tokens=False).ids, texts)
    # the two really differ without it
    with Vocab.open(path) as vocab:
        assert vocab.encode("Fox") != reference.encode("Fox", add_special_tokens=False).ids


def test_a_space_before_each_text_unless_there_is_one(tmp_path, sentencepiece_files):
    """What transformers 5 saves of Llama-2's tokenizer: exact but for texts that begin with a space."""
    folder = spm_checkpoint(tmp_path, sentencepiece_files / "bpe.model")
    save_llama_tokenizer(folder, "always")
    path, result = exported(tmp_path)
    assert GgufFile.open(path).get("tokenizer.ggml.add_space_prefix") is True
    assert any("begins with a space" in note for note in result.notes)
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [text for text in [*sample_texts(False), *odd_texts()] if not text.startswith(" ")]
    texts += [f"a</s>{text}" for text in texts[:40]]
    assert_equal_everywhere(path, lambda text: reference.encode(text, add_special_tokens=False).ids, texts)


def test_user_defined_pieces_of_a_sentencepiece_model(tmp_path, sentencepiece_files):
    """Mistral 0.3's tokenizer.model alone: a space is put before the whole text, and not behind such a piece."""
    sentencepiece.SentencePieceTrainer.train(
        input=str(sentencepiece_files / "text.txt"),
        model_prefix=str(tmp_path / "user"),
        model_type="bpe",
        vocab_size=900,
        character_coverage=0.98,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["[X]", "[REFERENCE]"],
        minloglevel=2,
    )
    spm_checkpoint(tmp_path, tmp_path / "user.model")
    path, _ = exported(tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "user.model"))
    texts = [*sample_texts(False), *odd_texts()]
    texts += [f"{text}[X]{text} [REFERENCE] a" for text in odd_texts(50)]
    space = reference.piece_to_id("▁")
    assert reference.encode("[X]a")[:2] == [space, reference.piece_to_id("[X]")]
    assert_equal_everywhere(path, lambda text: reference.encode(text)[1:], [f"[X]{text}" for text in texts])


def test_unigram_and_rubbish_are_refused(tmp_path, sentencepiece_files):
    with pytest.raises(UnsupportedError, match="unigram"):
        SentencePieceModel.open(sentencepiece_files / "unigram.model")
    whole = (sentencepiece_files / "bpe.model").read_bytes()
    # Cut behind its pieces, where it still reads as a message: a piece starts with 0x0A, how it was trained with 0x12.
    pieces_end = 0
    while whole[pieces_end] == 0x0A:
        pieces_end += 2 + whole[pieces_end + 1]
    for data in (b"", b"hello", whole[: len(whole) // 2], whole[:-3], whole[:pieces_end]):
        (tmp_path / "tokenizer.model").write_bytes(data)
        with pytest.raises(DamagedError):
            SentencePieceModel.open(tmp_path / "tokenizer.model")


@pytest.mark.reference
def test_llama3_tiktoken_file_is_refused(shared_data):
    with pytest.raises(UnsupportedError, match="tiktoken"):
        SentencePieceModel.open(shared_data / "tokenizer_llama3" / "tokenizer.model")
