"""onnxruntime's sessions over one ONNX base: KV caches in place, and LoRA pairs bound as inputs.

    engine = OnnxEngine(OnnxBase.open("onnx-folder"), n_ctx_tokens=512, threads=1)
    engine.decode([1, 2, 3], 0, pairs=adapter.arrays)
    engine.row.argmax()

Past and present of every layer are bound to the same memory, so a token costs no copy of the cache, and forgetting a
tail is a smaller position. The numbers of an adapter are bound as ordinary inputs, as views: onnxruntime's own
LoraAdapter is silently ignored by bound runs, and silently gone once its Python object is collected. Everything that a
binding points to is kept here with it. The base alone runs on a graph without LoRA inputs, so that it pays nothing for
them; each graph is opened when it is first needed.

A thread moves the weights to huge pages once an answer is long enough to gain by it (`huge_pages.py`).
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import DoesNotFitError, EngineError, InputError
from ..extras import extra_hint
from ..files.read import expect_mapped
from ..llama.abort import AbortFlag
from ..system.huge_pages import to_huge_pages
from ..system.machine import default_threads
from .adapter import Array
from .folder import BASE_FILE, DATA_FILE, FIRST_LOGIT, MODEL_FILE, OnnxBase

# Moving costs as much as some hundred tokens gain: who asks for a word does not pay, who talks on soon has it back.
MOVE_AFTER_STEPS: Final = 32
# Microseconds that a thread waits awake for the next matrix before it sleeps. A token has some hundred of them, each a
# few microseconds after the one before: waking for each costs a third of two threads' time, waiting this long nothing.
SPIN_US: Final = 100


def runtime() -> Any:
    """The onnxruntime module.

    Raises:
        EngineError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(f"onnxruntime does not load: {error}", hint=extra_hint("onnx")) from None
    return onnxruntime


def _spinning(threads: int) -> dict[str, str]:
    """onnxruntime's settings of how long threads wait awake: within a token for a moment, between tokens never."""
    if threads == 1:
        return {"session.intra_op.allow_spinning": "0"}
    return {
        "session.intra_op.allow_spinning": "1",
        "session.intra_op.spin_duration_us": str(SPIN_US),
        "session.force_spinning_stop": "1",
    }


@dataclass
class _Bound:
    """One graph's inputs under one adapter; `alive` holds what they point to."""

    session: Any
    binding: Any
    alive: list[Any]


class OnnxEngine:
    """Computes tokens of one sequence, or of several.

    Args:
        n_ctx_tokens: room of the KV cache of each sequence; memory is taken as it fills.
        threads: None: the fast physical cores.
        n_rows: sequences.
        beside: an engine on the same base whose graphs are used, in place of opening them again.

    Attributes:
        row: the logits of the last token that `decode` computed, float32, (n_vocab,): valid until the next one.
        rows: of all tokens of the last decode with `all_rows`, (n_tokens, n_vocab).
        step_rows: of the last `step`, (n_sequences, n_vocab).

    Raises:
        DoesNotFitError: the graph has no positions for so long a context.
        EngineError: onnxruntime is missing, or cannot load a graph.
    """

    def __init__(
        self,
        base: OnnxBase,
        *,
        n_ctx_tokens: int,
        threads: int | None = None,
        n_rows: int = 1,
        beside: "OnnxEngine | None" = None,
    ) -> None:
        if not 1 <= n_ctx_tokens <= base.max_length_tokens:
            raise DoesNotFitError(
                f"a context of {n_ctx_tokens} tokens is asked for; the graph has {base.max_length_tokens} positions",
                where=base.folder,
                hint="export it again with a larger --max-length",
            )
        self._ort = runtime()
        self.base = base
        self._beside = beside
        self.threads: int = beside.threads if beside is not None else threads or default_threads()
        self.n_ctx_tokens = n_ctx_tokens
        self._dtype = np.dtype(np.float16 if base.dtype == "f16" else np.float32)
        self._sessions: dict[str, Any] = {}
        self._bound: dict[tuple[Any, int, int], _Bound] = {}
        dims = (n_rows, base.n_kv_heads, n_ctx_tokens, base.head_size)
        # Zeroed pages are the kernel's until they are written.
        self._cache = {
            f"{layer}.{part}": np.zeros(dims, self._dtype)
            for layer in range(base.n_layers)
            for part in ("key", "value")
        }
        self._steps = 0
        self._run_options: Any = None
        self._mover: threading.Thread | None = None
        self._closed = threading.Event()
        self._mask = np.ones((1, n_ctx_tokens), np.int64)
        self._last = np.zeros((n_rows, 1, base.n_vocab), self._dtype)
        self.row: npt.NDArray[np.float32] = np.zeros(base.n_vocab, np.float32)
        self.step_rows: npt.NDArray[np.float32] = np.zeros((n_rows, base.n_vocab), np.float32)
        self.rows: npt.NDArray[np.float32] | None = None

    def session(self, lora: bool) -> Any:
        """One of the two graphs, opened on first use.

        Raises:
            EngineError: onnxruntime refuses it, or the engine is closed.
        """
        if self._closed.is_set():
            raise EngineError("the ONNX engine is closed", where=self.base.folder)
        if self._beside is not None:
            return self._beside.session(lora)
        name = MODEL_FILE if lora else BASE_FILE
        if name not in self._sessions:
            options = self._ort.SessionOptions()
            options.intra_op_num_threads = self.threads
            options.inter_op_num_threads = 1
            # Threads that spin without an end take the cores from whoever else has work, and between tokens from all.
            for key, value in _spinning(self.threads).items():
                options.add_session_config_entry(key, value)
            # Every step has another length: patterns would be kept for each of them.
            options.enable_mem_pattern = False
            options.log_severity_level = 4
            path = self.base.folder / name
            expect_mapped(self.base.folder / DATA_FILE)
            try:
                session = self._ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common type of their own
                raise EngineError(
                    "onnxruntime cannot load the graph", where=path, problems=[str(error)[:500]]
                ) from None
            self._sessions[name] = session
        return self._sessions[name]

    def decode(
        self,
        token_ids: Sequence[int],
        position: int,
        *,
        key: Any = None,
        pairs: Mapping[str, Array] | None = None,
        all_rows: bool = False,
        row: int = 0,
    ) -> None:
        """Computes tokens at `position`, `position + 1`, …; what the cache holds after them is forgotten.

        Args:
            key: name of the adapter's numbers, so that their binding is made once; None for the base alone.
            pairs: LoRA input -> its numbers; they must not change while the engine lives.
            all_rows: give logits of all tokens.
            row: the sequence.

        Raises:
            InputError: no tokens.
            DoesNotFitError: the cache has no room.
            EngineError: onnxruntime fails.
        """
        n, total = len(token_ids), position + len(token_ids)
        if n == 0:
            raise InputError("there are no tokens to decode")
        logits = np.zeros((1, n, self.base.n_vocab), self._dtype) if all_rows else self._last[:1]
        self._has_room(total)
        ids, mask = np.asarray([token_ids], np.int64), self._mask[:, :total]
        self._run(self._bind(key, pairs, row, row + 1), ids, mask, 0 if all_rows else n - 1, logits)
        self.rows = logits[0].astype(np.float32, copy=False) if all_rows else None
        self.row = logits[0, -1].astype(np.float32, copy=False)
        if n == 1:
            self._count_step()

    def step(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        *,
        key: Any = None,
        pairs: Mapping[str, Array] | None = None,
    ) -> None:
        """Computes one token for each of the first sequences, at a position in each; arguments and errors as above."""
        places = np.asarray(positions)
        self._has_room(int(places.max()) + 1)
        mask = (np.arange(places.max() + 1) <= places[:, None]).astype(np.int64)
        logits = self._last[: len(places)]
        ids = np.asarray(token_ids, np.int64)[:, None]
        self._run(self._bind(key, pairs, 0, len(places)), ids, mask, 0, logits)
        self.step_rows = logits[:, 0].astype(np.float32, copy=False)
        self._count_step()

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Copies what the cache holds of a sequence's first tokens into another sequence."""
        for values in self._cache.values():
            values[target, :, :n_tokens] = values[source, :, :n_tokens]

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token of one sequence."""
        return sum(values[0, :, :1].nbytes for values in self._cache.values())

    def take(self, sequence: int, n_tokens: int) -> dict[str, npt.NDArray[Any]]:
        """A copy of what the cache holds of a sequence's first tokens, by layer and part."""
        return {name: values[sequence, :, :n_tokens].copy() for name, values in self._cache.items()}

    def put(self, sequence: int, taken: Mapping[str, npt.NDArray[Any]]) -> None:
        """Puts into a sequence what `take` gave."""
        for name, values in taken.items():
            self._cache[name][sequence, :, : values.shape[1]] = values

    def zero(self, sequence: int) -> None:
        """Zeroes what the cache holds of a sequence."""
        for values in self._cache.values():
            values[sequence] = 0

    @contextlib.contextmanager
    def stopped_by(self, flag: AbortFlag | None) -> Iterator[None]:
        """What is computed inside the block ends with an EngineError soon after the flag is set; None: as ever.

        onnxruntime looks between two operations of the graph.
        """
        if flag is None:
            yield
            return
        options = self._run_options = self._ort.RunOptions()
        options.log_severity_level = 4
        flag.call(lambda: setattr(options, "terminate", True))
        try:
            yield
        finally:
            flag.call(None)
            self._run_options = None

    def _has_room(self, n_tokens: int) -> None:
        if n_tokens > self.n_ctx_tokens:
            raise DoesNotFitError(f"the context of {self.n_ctx_tokens} tokens has no room for {n_tokens}")

    def _run(
        self,
        bound: _Bound,
        ids: npt.NDArray[np.int64],
        mask: npt.NDArray[np.int64],
        first: int,
        logits: npt.NDArray[Any],
    ) -> None:
        view = self._ort.OrtValue.ortvalue_from_numpy
        inputs = {"input_ids": ids, "attention_mask": mask, FIRST_LOGIT: np.array([first], np.int64)}
        for name, values in inputs.items():
            bound.binding.bind_ortvalue_input(name, view(values))
        bound.binding.bind_ortvalue_output("logits", view(logits))
        try:
            bound.session.run_with_iobinding(bound.binding, self._run_options)
        except Exception as error:  # noqa: BLE001 - as above
            raise EngineError("onnxruntime fails", where=self.base.folder, problems=[str(error)[:500]]) from None

    def _count_step(self) -> None:
        """Moves the weights to huge pages once they have been read often enough."""
        if self._beside is not None:
            self._beside._count_step()
            return
        self._steps += 1
        if self._steps == MOVE_AFTER_STEPS and self._mover is None:
            self._mover = threading.Thread(target=to_huge_pages, args=(self._closed.is_set,), daemon=True)
            self._mover.start()

    def settle(self) -> None:
        """Waits until nothing is done beside decoding, for measurements."""
        if self._mover is not None:
            self._mover.join()

    def _bind(self, key: Any, pairs: Mapping[str, Array] | None, first: int, end: int) -> _Bound:
        """The binding of the sequences from `first` to `end` (excluded) under an adapter."""
        if (key is None) != (pairs is None):
            raise EngineError("numbers of an adapter without a name, or a name without numbers")
        found = self._bound.get((key, first, end))
        if found is None:
            session = self.session(pairs is not None)
            binding, alive = session.io_binding(), [pairs]
            view = self._ort.OrtValue.ortvalue_from_numpy
            for name, values in self._cache.items():
                held = view(values[first:end])
                alive.append(held)
                binding.bind_ortvalue_input(f"past_key_values.{name}", held)
                binding.bind_ortvalue_output(f"present.{name}", held)
            for name, values in (pairs or {}).items():
                held = view(values)
                alive.append(held)
                binding.bind_ortvalue_input(name, held)
            found = self._bound[key, first, end] = _Bound(session, binding, alive)
        return found

    def forget(self, key: Any) -> None:
        """Frees an adapter's bindings."""
        for place in [place for place in self._bound if place[0] == key]:
            del self._bound[place]

    def probe(self, token_ids: Sequence[int], pairs: Mapping[str, Array] | None = None) -> npt.NDArray[np.float32]:
        """Logits after the last of a few tokens, computed apart from the cache: (n_vocab,)."""
        base = self.base
        empty = np.zeros((1, base.n_kv_heads, 0, base.head_size), self._dtype)
        feeds: dict[str, Any] = {f"past_key_values.{name}": empty for name in self._cache}
        feeds |= {
            "input_ids": np.asarray([token_ids], np.int64),
            "attention_mask": np.ones((1, len(token_ids)), np.int64),
            FIRST_LOGIT: np.array([len(token_ids) - 1], np.int64),
            **(pairs or {}),
        }
        try:
            (logits,) = self.session(pairs is not None).run(["logits"], feeds)
        except Exception as error:  # noqa: BLE001 - as above
            raise EngineError("onnxruntime fails", where=base.folder, problems=[str(error)[:500]]) from None
        row: npt.NDArray[np.float32] = logits[0, -1].astype(np.float32)
        return row

    def close(self) -> None:
        """Frees sessions and cache. Calling it twice does nothing."""
        self._closed.set()
        self.settle()
        self._bound.clear()
        self._sessions.clear()
        self._cache.clear()
