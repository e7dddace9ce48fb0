"""The model that an adapter is trained on: a GGUF (the very weights that ship) or a Hugging Face folder, seen alike.

base = open_base("SmolLM2-135M-Instruct.Q4_1.gguf")
base.prompt_ids(messages)
model = base.load_model(attention="sdpa")
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...edge.errors import InputError, UnsupportedError
from ...edge.files.read import read_table, sha256_file
from ...edge.gguf.base import BaseInfo
from ...edge.gguf.chat_template import ChatTemplate, Message
from ...edge.gguf.families import text_fields
from ...edge.gguf.hf_form import dtype_word
from ...edge.gguf.rope import LONGROPE, SHORT_FACTORS, check_rope, original_tokens, read_rope, settle_rope
from ...edge.llama.prompt import PromptEncoder
from ...edge.llama.vocab import Vocab
from ..recipe import Weights
from .hf_tokens import HfTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MARK = "slm-edge-completion-mark"


class Base(Protocol):
    """What training needs of a base model.

    Attributes:
        path: the GGUF file or the folder.
        name: what `base_model_name_or_path` of the adapter says.
        template: the base's own chat template.
        n_context_tokens: the longest sequence that the base was made for.
    """

    path: Path
    name: str
    template: ChatTemplate
    n_context_tokens: int

    def encode(self, text: str) -> list[int]:
        """Token ids, special tokens parsed, no BOS added."""
        ...

    def prompt_ids(self, messages: Sequence[Message], arguments: Mapping[str, Any] | None = None) -> list[int]:
        """Token ids of a conversation that an answer is to follow; what its messages say makes no special token.

        Args:
            arguments: what the chat template is told besides, see `ChatTemplate.render`.
        """
        ...

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of an answer's text, which makes no control token either."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        ...

    def is_end(self, token_id: int) -> bool:
        """Whether a token ends a generation."""
        ...

    def token_text(self, token_id: int) -> str:
        """What a token is called, a special one too."""
        ...

    def load_model(self, attention: str, weights: Weights = "f32", device: str = "cpu") -> "PreTrainedModel":
        """The transformers model with that attention implementation, its frozen matrices kept as `weights` says."""
        ...

    def identity(self) -> dict[str, Any]:
        """What the record says of the base: kind, name, sha256."""
        ...


class GgufBase:
    """A GGUF base: its own weights, llama.cpp's own tokenizer."""

    def __init__(self, path: Path) -> None:
        info = BaseInfo.open(path)
        gguf = info.file
        self._file = gguf
        self.path = path
        self.name = path.name
        self.template = ChatTemplate.of(gguf)
        self.n_context_tokens = info.n_ctx_train_tokens
        if SHORT_FACTORS in gguf.tensors:
            # Beyond it positions turn at other speeds from the first token on.
            self.n_context_tokens = min(self.n_context_tokens, original_tokens(gguf))
        self._vocab = Vocab.open(path)
        self._prompts = PromptEncoder(gguf, self.template, self._vocab)

    def encode(self, text: str) -> list[int]:
        """Token ids as on the device."""
        return self._vocab.encode(text, special=True, add_bos=False)

    def prompt_ids(self, messages: Sequence[Message], arguments: Mapping[str, Any] | None = None) -> list[int]:
        """Token ids as on the device."""
        return self._prompts.encode(messages, arguments=arguments)

    def answer_ids(self, text: str) -> list[int]:
        """Token ids as on the device."""
        return self._vocab.encode(text, special=False, add_bos=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, as on the device."""
        return self._vocab.decode(list(ids))

    def is_end(self, token_id: int) -> bool:
        """Whether llama.cpp stops at the token."""
        return self._vocab.is_end(token_id)

    def token_text(self, token_id: int) -> str:
        """Its text in the file."""
        return self._vocab.decode([token_id], special=True)

    def load_model(self, attention: str, weights: Weights = "f32", device: str = "cpu") -> "PreTrainedModel":
        """The transformers model of the file's weights, dequantised or kept as blocks."""
        from .gguf_model import load_gguf_model

        return load_gguf_model(self.path, attention=attention, weights=weights, device=device)

    def identity(self) -> dict[str, Any]:
        """File name, size, sha256 and fingerprint: the last ties the adapter to every quantisation of this base."""
        return {
            "kind": "gguf",
            "name": self.name,
            "fingerprint": BaseInfo.of(self._file).fingerprint,
            "size_bytes": self.path.stat().st_size,
            "sha256": sha256_file(self.path),
        }


class HfBase:
    """A Hugging Face folder: safetensors and tokenizer of transformers.

    Args:
        name: its name on the hub, where it is from there.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        # The file as it stands: a class by name may build another tokenizer of it, or be unknown to this release.
        kind: Any = PreTrainedTokenizerFast if (path / "tokenizer.json").is_file() else AutoTokenizer
        try:
            self._tokenizer = kind.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(f"the tokenizer cannot be loaded: {error}", where=path) from None
        source = self._tokenizer.chat_template
        if not isinstance(source, str):
            raise InputError("the tokenizer has no chat template", where=path, hint="add chat_template.jinja to it")
        config = read_table(path / "config.json")
        self.path = path
        self.name = name or str(path)
        special = self._tokenizer.special_tokens_map
        self.template = ChatTemplate(source, tokens={k: v for k, v in special.items() if isinstance(v, str)})
        self._tokens = HfTokens(self._tokenizer)
        self._prompts = PromptEncoder(self._tokens.kinds, self.template, self._tokens)
        self.n_context_tokens = int(config.get("max_position_embeddings", 2048))
        rope = read_rope(text_fields(config), [])
        if rope.kind == LONGROPE:
            self.n_context_tokens = min(self.n_context_tokens, rope.fields["original_max_position_embeddings"])
        ends = self._generation_ends(path)
        self._ends = ends | {self._tokenizer.eos_token_id}

    @staticmethod
    def _generation_ends(path: Path) -> set[int | None]:
        file = path / "generation_config.json"
        ends = read_table(file).get("eos_token_id") if file.is_file() else None
        return set(ends) if isinstance(ends, list) else {ends}

    def encode(self, text: str) -> list[int]:
        """Token ids of the folder's tokenizer."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def prompt_ids(self, messages: Sequence[Message], arguments: Mapping[str, Any] | None = None) -> list[int]:
        """Token ids of the rendered text."""
        return self._prompts.encode(messages, arguments=arguments)

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of the folder's tokenizer."""
        return self._tokens.encode(text, special=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def is_end(self, token_id: int) -> bool:
        """Whether the token is an EOS of the tokenizer or of the generation config."""
        return token_id in self._ends

    def token_text(self, token_id: int) -> str:
        """Its text in the tokenizer."""
        return str(self._tokenizer.decode([token_id]))

    def load_model(self, attention: str, weights: Weights = "f32", device: str = "cpu") -> "PreTrainedModel":
        """The transformers model of the folder's weights.

        Raises:
            InputError: `weights` is "gguf": a folder has no blocks.
            UnsupportedError: transformers reads its config.json in another way than the export does.
        """
        import torch
        import transformers
        from transformers import AutoConfig, AutoModelForCausalLM

        if weights == "gguf":
            raise InputError(
                'weights = "gguf" needs a GGUF base',
                where=self.path,
                hint='make one with `slm-edge export base`, or use weights = "nf4"',
            )
        dtypes: dict[str, Any] = {"f32": torch.float32, "bf16": torch.bfloat16, "nf4": "auto"}
        config = AutoConfig.from_pretrained(self.path, local_files_only=True)
        rope = settle_rope(config, read_table(self.path / "config.json"), self.path)
        model: Any = AutoModelForCausalLM.from_pretrained(
            self.path,
            config=config,
            **{dtype_word(transformers.__version__): dtypes[weights]},
            attn_implementation=attention,
            local_files_only=True,
            use_safetensors=True,
        )
        if rope is not None:
            check_rope(model, rope, self.path)
        if weights == "nf4":
            from .nf4 import to_nf4

            to_nf4(model, device)
        return model.to(device)  # type: ignore[no-any-return]

    def identity(self) -> dict[str, Any]:
        """Folder name and the sha256 of each weight file."""
        files = sorted(self.path.glob("*.safetensors"))
        hashes = {file.name: sha256_file(file) for file in files}
        if self.name != str(self.path):
            return {"kind": "hf", "name": self.name, "hub": self.name, "sha256": hashes}
        return {"kind": "hf", "name": self.path.name, "sha256": hashes}


def open_base(path: str | Path, name: str | None = None) -> Base:
    """Opens a GGUF file or a Hugging Face folder, `name` being what a folder is called on the hub.

    Raises:
        InputError: neither of the two, or no chat template.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError("has no config.json: not a Hugging Face model folder", where=path)
        return HfBase(path, name)
    return GgufBase(path)


def completion_end(base: Base) -> list[int]:
    """The tokens with which the base's template ends an assistant turn, up to and with the one that stops generation.

    Raises:
        UnsupportedError: the template writes no such token: a model trained on it would never stop.
    """
    turns: list[Message] = [{"role": "user", "content": "x"}, {"role": "assistant", "content": MARK}]
    rendered = base.template.render(turns, add_generation_prompt=False)
    ids = base.encode(rendered.rpartition(MARK)[2])
    for at, token_id in enumerate(ids):
        if base.is_end(token_id):
            return ids[: at + 1]
    raise UnsupportedError("the chat template ends an answer with no token that stops generation", where=base.path)
