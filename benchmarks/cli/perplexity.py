"""`slm-edge bench perplexity`: perplexity of a pack on a text, and its KL divergence from a reference base."""

import contextlib
import functools
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...edge.cli.options import PackType, engine_option, threads_option
from ...edge.console import emit, json_option, progress

if TYPE_CHECKING:
    from ...edge.llama.vocab import Vocab
    from ...edge.pack.pack import Pack
    from ..likelihood.log_probs import LogProbs
    from ..scores.answers import AnswerFile
    from ..scores.cells import Column
    from ..scores.generate import AnySession


@click.command()
@click.argument("text_file", metavar="TEXT", type=click.Path(path_type=Path))
@click.option("--pack", "pack_folder", type=PackType(), help="Pack to measure.  [default: the starter]")
@click.option(
    "--adapter", "names", multiple=True, metavar="NAME|none|each", help="May be given again.  [default: none]"
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="GGUF of the reference, e.g. the base in F16; the KL from it is reported too.",
)
@click.option("--ctx", "n_ctx", type=click.IntRange(8), default=512, show_default=True, help="Tokens of a chunk.")
@click.option("--limit", type=click.IntRange(1), help="Chunks, from the beginning.  [default: all]")
@engine_option
@threads_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("bench"),
    show_default=True,
    help="Folder for chunks and report.",
)
@json_option
def perplexity(
    text_file: Path,
    pack_folder: Path | None,
    names: tuple[str, ...],
    against: Path | None,
    n_ctx: int,
    limit: int | None,
    engine: str,
    threads: int | None,
    out: Path,
    as_json: bool,
) -> None:
    """Perplexity of TEXT under a pack's base or adapters, by the rules of llama.cpp's perplexity tool.

    With --against also the KL divergence from that model and how often both hold the same token likeliest. Every chunk
    is written as it comes; the same command again goes on where it stopped. --out gets perplexity.json.

    \b
    Example:
      slm-edge bench perplexity DATA/wikitext2/test.txt --adapter none --adapter math --limit 100
      slm-edge bench perplexity DATA/wikitext2/test.txt --pack my-pack --engine onnx
    """
    from ...edge.errors import InputError
    from ...edge.files.atomic import write_json
    from ...edge.files.read import read_text, sha256_file
    from ...edge.pack.pack import Pack
    from ..likelihood.perplexity import chunks_of, summary
    from ..scores.answers import held, identity_sha256
    from ..scores.cells import columns_of

    pack = Pack.open(pack_folder)
    columns = columns_of(pack, names or ("none",), engine)
    if any(column.is_auto for column in columns):
        raise InputError("a text has no prompt that a router could choose by", hint="--adapter NAME, none or each")
    text = read_text(text_file)
    if against is not None and not against.is_file():
        raise InputError("no such file", where=against)
    reference_sha256 = sha256_file(against) if against is not None else None
    rows: list[dict[str, Any]] = []
    with (
        _scorers(pack, engine, n_ctx, threads) as (session, scorer_of, n_threads),
        _reference(session.vocab, against, n_ctx, n_threads) as reference,
    ):
        chunks = chunks_of(session.vocab, text, n_ctx)[:limit]
        for column in columns:
            identity = _identity(text, pack, column, n_ctx, reference_sha256)
            with held(out / "answers", identity, "perplexity", write=True) as answers:
                _measure(session.vocab, column, scorer_of, chunks, reference, answers)
                records = [answers.records[str(i)] for i in range(len(chunks))]
                rows.append(
                    {
                        "adapter": column.name,
                        "n_ctx_tokens": n_ctx,
                        "n_tokens": sum(record.n_tokens for record in records),
                        "wall_s": round(answers.wall_s(), 1),
                        **summary(records),
                        "identity": identity,
                        "identity_sha256": identity_sha256(identity),
                    }
                )
    data = {"schema": 1, "text": text_file.name, "text_sha256": hashlib.sha256(text.encode()).hexdigest(), "rows": rows}
    write_json(out / "perplexity.json", data)
    emit(data, as_json, "\n".join(_line(row) for row in rows))


def _identity(text: str, pack: "Pack", column: "Column", n_ctx: int, reference_sha256: str | None) -> dict[str, Any]:
    from importlib import metadata

    return {
        "schema": 1,
        "task": "perplexity",
        "adapter": column.name,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "n_ctx_tokens": n_ctx,
        "base_sha256": pack.base.sha256,
        "adapter_sha256": column.adapter.sha256 if column.adapter else None,
        "scale": column.adapter.card.scale if column.adapter else None,
        "reference_sha256": reference_sha256,
        "llama_cpp_python": metadata.version("llama-cpp-python"),
        **(column.facts or {}),
    }


@contextlib.contextmanager
def _scorers(
    pack: "Pack", engine: str, n_ctx: int, threads: int | None
) -> "Iterator[tuple[AnySession, Callable[[Column, list[int]], LogProbs], int]]":
    """The pack's session, what scores chunks under a column, given one of them, and the number of threads."""
    from ...edge.engines import open_session
    from ..likelihood.log_probs import log_probs_after, onnx_log_probs_after, scoring_context

    if engine == "onnx":
        with open_session(pack, "onnx", n_ctx_tokens=n_ctx, threads=threads) as onnx:

            def on_onnx(column: "Column", chunk: list[int]) -> "LogProbs":
                section = onnx.sections(onnx.choice_of(column.name), chunk)[-1]
                return functools.partial(onnx_log_probs_after, onnx.engine, **onnx.lane.numbers(section.state))

            yield onnx, on_onnx, onnx.threads
        return
    with open_session(pack, allow_pull=True, threads=threads) as session:
        n_threads = session.threads
        with scoring_context(session.model, n_ctx, n_threads) as context:

            def on_llama(column: "Column", chunk: list[int]) -> "LogProbs":
                context.set_adapters(session.sections(session.choice_of(column.name), chunk)[-1].adapters)
                return functools.partial(log_probs_after, context)

            yield session, on_llama, n_threads


@contextlib.contextmanager
def _reference(ours: "Vocab", path: Path | None, n_ctx: int, threads: int) -> "Iterator[LogProbs | None]":
    from ...edge.errors import InputError
    from ...edge.gguf.base import BaseInfo
    from ...edge.llama.model import Model
    from ..likelihood.log_probs import log_probs_after, scoring_context

    if path is None:
        yield None
        return
    BaseInfo.open(path)
    with Model.load(path) as model, scoring_context(model, n_ctx, threads) as context:
        theirs = model.vocab
        probe = "The 3 rivers, été 1984.\n\n"
        if ours.n_tokens != theirs.n_tokens or ours.encode(probe) != theirs.encode(probe):
            raise InputError("has another tokenizer than the pack's base", where=path)
        yield functools.partial(log_probs_after, context)


def _measure(
    vocab: "Vocab",
    column: "Column",
    scorer_of: "Callable[[Column, list[int]], LogProbs]",
    chunks: list[list[int]],
    reference: "LogProbs | None",
    answers: "AnswerFile",
) -> None:
    from ..likelihood.perplexity import score_chunks
    from ..scores.answers import Record

    missing = [i for i in range(len(chunks)) if str(i) not in answers.records]
    if not missing:
        return
    label = f"perplexity x {column.name or 'base'}"
    begun = time.monotonic()
    with progress(label, len(chunks), "chunks") as advance:
        advance(len(chunks) - len(missing))
        found = score_chunks(scorer_of(column, chunks[0]), vocab, [chunks[i] for i in missing], reference)
        for i, score in zip(missing, found, strict=True):
            at_s = round(time.monotonic() - begun, 6)
            record = Record(
                str(i), score.text(), score.scores(), len(chunks[i]), score.n_scored, "end", answers.run, at_s
            )
            answers.add(record)
            advance(1)


def _line(row: dict[str, Any]) -> str:
    found = row["perplexity"]
    text = (
        f"{row['adapter'] or 'base'}: perplexity {found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}], "
        f"{row['n_chunks']} chunks of {row['n_ctx_tokens']}"
    )
    if "kl" in row:
        kl, same = row["kl"], row["same_top"]
        text += (
            f"; KL {kl['value']:.5f} [{kl['low']:.5f}, {kl['high']:.5f}], 99 % {row['kl_percentiles']['99']:.4f}; "
            f"same top {100 * same['value']:.2f} % [{100 * same['low']:.2f}, {100 * same['high']:.2f}]"
        )
    return text
