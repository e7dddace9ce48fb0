"""Makes tiny Hugging Face checkpoints with random weights, saved by transformers itself.

folder = tiny_checkpoint(tmp_path / "hf", family="qwen2", tied=False)
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# how the published tokenizers split text (facts of the format)
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = {"qwen2": r"\p{N}", "llama-bpe": r"\p{N}{1,3}"}
# Family -> beginning of the names of its classes in transformers, and config fields of its own.
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "smollm3": ("SmolLM3", {"pad_token_id": 0}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.4,
            "logits_scaling": 0.5,
            "pad_token_id": 0,
        },
    ),
    "olmo2": ("Olmo2", {"pad_token_id": 0}),
    "exaone4": ("Exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2, "pad_token_id": 0}),
    "hunyuan": ("HunYuanDenseV1", {"pad_token_id": 0}),
    # six layers are the fewest that have both kinds of attention
    "gemma3": (
        "Gemma3",
        {"num_hidden_layers": 6, "sliding_window": 24, "query_pre_attn_scalar": 16, "pad_token_id": 0},
    ),
    # has no row in the table of families: see test_family_row.py
    "seed_oss": ("SeedOss", {"attention_bias": True, "attention_out_bias": False, "residual_dropout": 0.0}),
}
TRAINING_TEXT = (
    "The cat sat on the mat, and the dog didn't. How many apples are left after 12 were eaten?",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 40))\n",
    "Der Müller sagt: übermäßig schöne Grüße! L'été est fini, où êtes-vous ?",
    "Привет, мир! 你好，世界。こんにちは 안녕하세요 مرحبا שלום हिन्दी ไทย 🙂🚀",
    "She sells sea shells by the sea shore. There were 100 of them, then 99, then 98.",
)


def tiny_tokenizer(pre: str = "qwen2", n_tokens: int = 384, lines: Sequence[str] = TRAINING_TEXT) -> Tokenizer:
    """A byte-level BPE, trained on a few lines, that splits as the named pre-tokenizer of llama.cpp does.

    Args:
        pre: "qwen2", "llama-bpe", "smollm" or "gpt-2".
        lines: what it is trained on.
    """
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pre in DIGITS:
        pattern = Regex(PATTERN.replace("DIGITS", DIGITS[pre]))
        split = pre_tokenizers.Split(pattern, behavior="isolated", invert=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    elif pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def tiny_checkpoint(
    folder: Path,
    family: str = "llama",
    *,
    tied: bool = True,
    rope_scaling: dict[str, Any] | None = None,
    seed: int = 0,
    n_layers: int = 2,
    n_embd: int = 64,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    n_ff: int = 128,
    n_ctx_tokens: int = 512,
    pre: str = "qwen2",
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
    chat_template: str | None = CHATML,
    **config_fields: Any,
) -> Path:
    """Saves a random checkpoint with config, safetensors, tokenizer and chat template; returns its folder.

    Args:
        family: a name in `TINY`.
        tied: the head is the embedding.
        rope_scaling: as in config.json, for example `LLAMA3_SCALING`.
        pre: see `tiny_tokenizer`.
        max_shard_size: a small one, such as "100KB", makes several shards and an index.
    """
    tokenizer = tiny_tokenizer(pre)
    n_tokens = tokenizer.get_vocab_size()
    fields: dict[str, Any] = {
        "vocab_size": n_tokens,
        "hidden_size": n_embd,
        "intermediate_size": n_ff,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "max_position_embeddings": n_ctx_tokens,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 2,
        # large enough that a wrong permutation or scaling shows in the logits
        "initializer_range": 0.15,
    }
    fields["head_dim"] = n_embd // n_heads
    kind, own_fields = TINY[family]
    if not hasattr(transformers, f"{kind}ForCausalLM"):
        # .ci/export-job makes its pair without pytest.
        import pytest

        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    given = fields | own_fields | config_fields
    if transformers.__version__ < "5":
        given["rope_scaling"] = rope_scaling
    elif rope_scaling is not None or "rope_theta" in given:
        theta = {"rope_theta": given.pop("rope_theta", 10_000.0)}
        given["rope_parameters"] = (rope_scaling or {"rope_type": "default"}) | theta
        if family == "gemma3":
            window = {"rope_type": "default", "rope_theta": 10_000.0}
            given["rope_parameters"] = {"full_attention": given["rope_parameters"], "sliding_attention": window}
    config_class = "Gemma3TextConfig" if family == "gemma3" else f"{kind}Config"
    config = getattr(transformers, config_class)(**given)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                # Some releases of transformers begin Gemma's at 1, which doubles it: its norms are one more.
                weight.fill_(0.0 if family == "gemma3" else 1.0).add_(torch.randn_like(weight) * 0.1)
            elif name.endswith("bias"):
                weight.copy_(torch.randn_like(weight) * 0.1)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIALS[0], eos_token=SPECIALS[2], pad_token=SPECIALS[0]
    )
    wrapped.save_pretrained(folder)
    if chat_template is not None:
        (Path(folder) / "chat_template.jinja").write_text(chat_template)
    return Path(folder)


def add_bos_processor(folder: Path) -> None:
    """Makes a checkpoint's tokenizer write its BOS token, as Llama-3's does."""
    path = Path(folder) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIALS[0]} $A", special_tokens=[(SPECIALS[0], 0)]
    )
    tokenizer.save(str(path))


def as_transformers_4(folder: Path) -> None:
    """Rewrites a checkpoint's config as transformers 4 saves it: `rope_theta` and `rope_scaling`."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    if "rope_parameters" in config:
        rope = config.pop("rope_parameters")
        if "full_attention" in rope:
            config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
            rope = rope["full_attention"]
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


def as_transformers_5(folder: Path) -> None:
    """Rewrites a checkpoint's config and tokenizer as transformers 5 saves them: `rope_parameters`, its own class."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    if "rope_parameters" not in config:
        rope = config.pop("rope_scaling") or {"rope_type": "default"}
        config["rope_parameters"] = rope | {"rope_theta": config.pop("rope_theta")}
        if "rope_local_base_freq" in config:
            window = {"rope_type": "default", "rope_theta": config.pop("rope_local_base_freq")}
            config["rope_parameters"] = {"full_attention": config["rope_parameters"], "sliding_attention": window}
    path.write_text(json.dumps(config, indent=2, sort_keys=True))
    path = Path(folder) / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text())
    kept = {
        name: value for name, value in tokenizer.items() if name not in ("added_tokens_decoder", "extra_special_tokens")
    }
    path.write_text(json.dumps(kept | {"backend": "tokenizers", "tokenizer_class": "TokenizersBackend"}))


def edit_config(folder: Path, **fields: Any) -> None:
    """Changes fields of a checkpoint's config.json."""
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
