"""What `run` and `chat` answer with: a pack, or a GGUF file with its LoRA files, however it is named.

chosen("model.gguf", None, ("style.gguf=0.5",))     # a base and an adapter, no pack
chosen("my-pack", None, ())                         # a folder with a pack.json, or the name of something pulled
chosen("hf.co/org/tiny-GGUF:Q4_K_M", None, ())      # fetched, unless it is here
chosen("llama3.2", None, ())                        # InputError: it is no file; what to type
"""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

import click

from ..console import waiting
from ..errors import InputError
from ..files.cache import store_folder
from ..options import EngineOptions
from ..pack.manifest import PACK_FILE
from ..pack.pack import Pack
from ..written import check_name

if TYPE_CHECKING:
    from ..answer.base import SessionBase
    from ..scheduler.engine import Engine
    from ..store.version import Version

_FAMILIES: Final = (
    "llama|tinyllama|codellama|qwen|qwq|mistral|mixtral|ministral|codestral|gemma|codegemma|phi|smollm|deepseek|granite"
    "|falcon|olmo|gpt-oss|starcoder|vicuna|aya|command-r|exaone|lfm|nemotron|internlm|yi|zephyr|openhermes|stablelm"
)
# Words that name a model elsewhere: a family with its size or version, a tag, a place on the hub.
_MODEL_NAME: Final = re.compile(
    r"(?:hf\.co|huggingface\.co|ollama\.com|hf|hub|ollama)[/:]\S+"
    r"|https?://\S*(?:gguf|hf\.co|huggingface\.co|pack\.json)\S*"
    rf"|(?:[\w.-]+/)?(?:{_FAMILIES})[\d.]*(?:[-_.][\w.-]+)?(?::[\w.-]+)?"
    rf"|(?:[\w.-]+/)?[\w.-]+:(?:latest|[\d.]+[bm](?:[-_][\w.-]+)?)|[\w.-]+/[\w.-]*gguf[\w.-]*(?::[\w.-]+)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Lora:
    """One adapter file and its strength; None: as trained."""

    name: str
    file: Path
    scale: float | None


@dataclass(frozen=True)
class Source:
    """A pack, or a base file with adapter files.

    Attributes:
        pack: None where a GGUF file is the base.
        base: that file; None with a pack.
        version: what the store knows of it; None for a file that lies elsewhere.
    """

    pack: Pack | None
    base: Path | None = None
    loras: tuple[Lora, ...] = ()
    version: "Version | None" = None

    @property
    def shown(self) -> str:
        """The base as people know it: its file's name. What a file calls itself inside is often a riddle."""
        if self.version is not None:
            return self.version.name
        if self.pack is not None:
            return self.pack.base.file_name.removesuffix(".gguf")
        assert self.base is not None
        return self.base.stem

    @property
    def default(self) -> str | None:
        """What answers when no adapter is named: a name, several as "a:0.5+b:1", "auto", None for the base alone."""
        if self.pack is not None:
            return self.pack.default_adapter
        return "+".join(one.name if one.scale is None else f"{one.name}:{one.scale:g}" for one in self.loras) or None

    def watched(self) -> AbstractContextManager[None]:
        """Around all that is done with it: a version of a pack that is new here and fails is taken back by itself."""
        if self.pack is None or store_folder() not in self.pack.folder.absolute().parents:
            return nullcontext()
        from ..update.watch import watched

        return watched(self.pack)

    def followed_by(self, engine: "Engine") -> AbstractContextManager[object]:
        """While a server runs: an update of the pack's adapters comes into use in it."""
        if self.pack is None or store_folder() not in self.pack.folder.absolute().parents:
            return nullcontext()
        from ..update.follow import Follower

        return Follower(engine, self.pack)

    def open(
        self, engine: str, adapter: str | None, *, one_answer: bool = False, **options: Unpack[EngineOptions]
    ) -> "SessionBase[Any]":
        """A session that answers with that adapter; arguments and errors as `engines.open_session`."""
        from ..engines import open_files, open_session

        if self.pack is None and adapter == "auto":
            raise InputError("a model file has no router, which 'auto' needs", hint="name an adapter, or use a pack")
        with waiting(lambda: "loading the model"):
            if self.pack is not None:
                return open_session(
                    self.pack, engine, adapter=adapter, allow_pull=True, one_answer=one_answer, **options
                )
            assert self.base is not None
            self._note_use()
            files = {one.name: one.file for one in self.loras}
            return open_files(self.base, files, engine, adapter=adapter, one_answer=one_answer, **options)

    def _note_use(self) -> None:
        """Notes that this process uses a model of the store; of packs `Pack` does that."""
        if self.version is not None:
            from ..store.uses import mark_use

            mark_use(self.version.digest, self.version.name)

    def open_engine(
        self, engine: str, *, parallel: int, max_wait_s: float, **options: Unpack[EngineOptions]
    ) -> "Engine":
        """An engine for requests of many; arguments and errors as `scheduler.engine.Engine.open`."""
        from ..engines import open_files
        from ..scheduler.engine import Engine

        if self.pack is not None:
            return Engine.open(
                self.pack,
                engine=engine,
                parallel=parallel,
                max_wait_s=max_wait_s,
                allow_pull=True,
                base_name=self.shown,
                **options,
            )
        base, files = self.base, {one.name: one.file for one in self.loras}
        assert base is not None
        self._note_use()
        return Engine.of_session(
            lambda: open_files(base, files, engine, **options),
            parallel=parallel,
            max_wait_s=max_wait_s,
            reuse=options.get("reuse", "fast"),
            base_name=self.shown,
        )


def looks_like_model(word: str) -> bool:
    """Whether one word names a model, here or elsewhere, so that it cannot be meant as a prompt."""
    if not word or len(word.split()) != 1:
        return False
    is_file = word.lower().endswith(".gguf")
    known = is_file or word == "starter" or _is_pack(word) or _MODEL_NAME.fullmatch(word) is not None
    return known or _was_pulled(word)


def _was_pulled(word: str) -> bool:
    try:
        if not (store_folder() / "refs").is_dir():
            return False
    except InputError:
        # A user without a home has no store.
        return False
    from ..store.store import Store

    return word in Store().names()


def model_and_prompt(words: Sequence[str], prompt: str | None, model: str | None) -> tuple[str | None, str | None]:
    """What the words of `run [MODEL] [PROMPT]` are, with `-p` and `-m`: the model and the prompt, None where left out.

    Raises:
        UsageError: there are too many, or one is given twice.
    """
    rest = list(words)
    if model is None and len(rest) > (prompt is None):
        # Two words are a model and a prompt; with -p one word is the model.
        model = rest.pop(0)
    elif model is None and len(rest) == 1 and looks_like_model(rest[0]):
        model = rest.pop(0)
    if len(rest) > (prompt is None):
        which = "the prompt is given twice" if prompt is not None else "there are too many words"
        raise click.UsageError(f'{which}: put the prompt in quotes, as in slm-edge run FILE.gguf "Hello you".')
    return model, rest[0] if rest else prompt


def chosen(model: str | None, pack: str | None, loras: Sequence[str]) -> Source:
    """What is answered with.

    Args:
        model: a GGUF file, a pack's folder, "starter", a name or place of `hub.reference`; None if none is named.
        pack: `--pack`, which takes the same.
        loras: `--lora` FILE or FILE=SCALE each.

    Raises:
        InputError: a name that is nothing; files that are not there.
        SlmEdgeError: what is to be fetched could not be.
    """
    if model is not None and pack is not None:
        raise click.UsageError(f"there are two models: {model} and --pack {pack}; leave one out.")
    named = model if model is not None else "starter" if pack is None else pack
    if Path(named).is_dir():
        source = Source(Pack.open(named))
    elif Path(named).is_file():
        source = Source(None, Path(named), _loras(loras))
    elif named == "starter":
        source = Source(Pack.open(None))
    else:
        source = _pulled(named, loras)
    if loras and source.pack is not None:
        raise click.UsageError(
            "--lora goes with a model file: slm-edge run -m FILE.gguf --lora FILE. "
            "Into a pack, an adapter is put by slm-edge pack add."
        )
    return source


def _pulled(named: str, loras: Sequence[str]) -> Source:
    """What a reference names that is no file or folder: pulled before, or fetched now."""
    from ..pack.located import located

    found = located(named)
    if found.path.is_dir():
        return Source(Pack.open(found.path), version=found.version)
    if not found.path.is_file():
        raise InputError("no such file", where=named, hint='slm-edge run FILE.gguf "Hello" takes a model that you have')
    return Source(None, found.path, _loras(loras), found.version)


def _is_pack(name: str) -> bool:
    return (Path(name) / PACK_FILE).is_file()


def _loras(texts: Sequence[str]) -> tuple[Lora, ...]:
    """The adapters of `--lora`, named by their files."""
    found: dict[str, Lora] = {}
    for text in texts:
        file, equals, tail = text.rpartition("=")
        scale: float | None = None
        if equals and not Path(text).is_file():
            try:
                scale = float(tail)
            except ValueError:
                raise InputError(f"{tail!r} is not a scale for the adapter; for example --lora {file}=0.5") from None
        path = Path(file if scale is not None else text)
        if not path.is_file():
            raise InputError("no such file", where=path)
        name = _name(path, len(found) + 1)
        found[name if name not in found else f"{name}-{len(found) + 1}"] = Lora(name, path, scale)
    return tuple(Lora(name, one.file, one.scale) for name, one in found.items())


def _name(path: Path, number: int) -> str:
    """A name that can be written on a command line: the file's, or a number where it has other letters."""
    try:
        return check_name(path.stem, "an adapter")
    except InputError:
        return f"lora{number}"
