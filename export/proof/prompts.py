"""The prompts of a proof: built in or from a file, rendered by the model's own template and encoded on both sides."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...edge.errors import InputError
from ...edge.files.read import is_text, json_rows, lines_of, read_text
from ...edge.gguf.chat_template import ChatTemplate, Message
from ...edge.gguf.file import GgufFile
from ...edge.llama.vocab import Vocab
from ...edge.session.shelf import activation_start


@dataclass(frozen=True)
class Prompt:
    """One request: a user's text, with a system text before it or not."""

    text: str
    system: str | None = None

    def messages(self) -> list[Message]:
        """As chat messages."""
        before: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*before, {"role": "user", "content": self.text}]


BUILT_IN: Final = (
    Prompt("A box has 12 eggs. 5 are used and 3 break. How many are left?"),
    Prompt("Write a Python function that returns the n-th Fibonacci number.\n\n    def fib(n):\n"),
    Prompt("Summarize: The ferry was late because of fog, so the band played on the pier.", "You are brief."),
    Prompt("Wie heißt die größte Stadt Österreichs, und wie viele Einwohner hat sie?"),
    Prompt("翻译成英文：我们明天早上八点在车站见面。"),
    Prompt("Сколько будет 17 × 23? Ответь одним числом."),
    Prompt('Reply as JSON {"city": …, "zip": "00501"}: Holtsville, NY 🙂  (two spaces,\ttab)'),
    Prompt("Hello"),
)


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Prompts from a file: one a line; in a .jsonl file each line is a text or {"prompt": …, "system": …}.

    Raises:
        InputError: it cannot be read, holds none, or a line is neither.
    """
    if path.suffix == ".jsonl":
        prompts = [_prompt(row, number, path) for number, row in json_rows(path)]
    else:
        prompts = [Prompt(line) for line in lines_of(read_text(path)) if line.strip()]
    if not prompts:
        raise InputError("holds no prompts", where=path)
    return tuple(prompts)


def _prompt(row: Any, number: int, path: Path) -> Prompt:
    if is_text(row):
        return Prompt(row)
    text = row.get("prompt") if isinstance(row, dict) else None
    system = row.get("system") if isinstance(row, dict) else None
    if not is_text(text) or not (system is None or is_text(system)):
        raise InputError(f'line {number} is neither a text nor {{"prompt": "…", "system": "…"}}', where=path)
    return Prompt(str(text), system)


@dataclass(frozen=True)
class Rendered:
    """A prompt as token ids of llama.cpp; whether the reference's tokenizer agrees, None if there is none."""

    ids: list[int]
    tokens_equal: bool | None


def render(prompt: Prompt, base: GgufFile, vocab: Vocab, tokenizer: Any, alora_tokens: Sequence[int]) -> Rendered:
    """Renders and encodes a prompt on both sides. A base without a chat template gets the plain text.

    Args:
        tokenizer: transformers' tokenizer of the reference, or None.
        alora_tokens: put behind the prompt where it does not hold them already.
    """
    has_template = bool(base.get("tokenizer.chat_template"))
    if has_template:
        text = ChatTemplate.of(base).render(prompt.messages())
        ids = vocab.encode(text, special=True, add_bos=False)
    else:
        text = "\n\n".join(message["content"] for message in prompt.messages())
        ids = vocab.encode(text, special=True, add_bos=True)
    equal = None
    if tokenizer is not None:
        theirs = text
        # A folder may have none: the base's was given to its export.
        if has_template and tokenizer.chat_template:
            theirs = tokenizer.apply_chat_template(prompt.messages(), add_generation_prompt=True, tokenize=False)
        expected = list(tokenizer(theirs, add_special_tokens=not has_template)["input_ids"])
        # A folder whose tokenizer names no BOS leaves it to whoever calls; llama.cpp's has one.
        behind_bos = not has_template and tokenizer.bos_token is None and ids[:1] == [vocab.bos_id]
        equal = (ids[1:] if behind_bos else ids) == expected
    if alora_tokens and activation_start(ids, alora_tokens) is None:
        ids = [*ids, *alora_tokens]
    return Rendered(ids, equal)
