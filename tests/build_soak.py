"""Many mixed swaps and requests in one process: every answer right, no growth in memory. Run long by hand:

cd tests && python build_soak.py 10000 [both]

With "both" the weights are held in two layouts (F32 has one alone, so the answers are those of a session of one).
"""

import gc
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
from build_gguf import tiny_adapter, tiny_base
from slm_edge.edge.session.session import Session

LONG = "the world and the rest of it, again and again. " * 5
KEPT_BYTES = 200_000
CHOICES = ("a", "b", "c", "d", None, {"a": 0.5, "b": 0.5})


def soak(
    folder: Path,
    n_turns: int,
    seed: int = 0,
    *,
    both_layouts: bool = False,
    architecture: str = "llama",
    base: Path | None = None,
) -> int:
    """Does `n_turns` random turns and checks every answer; gives the growth in bytes over the second half."""
    base = tiny_base(folder / "base.gguf", architecture=architecture) if base is None else base
    files = {name: (tiny_adapter(folder / f"{name}.gguf", base, seed=i), None) for i, name in enumerate("abcd", 1)}
    # Two layouts matter from prompts of 128 tokens on.
    step = 250 if both_layouts else 40
    prompts = [(LONG * 6)[: step * i] + "and" for i in range(1, 6)]
    right = {}
    with Session.of_files(base, files, threads=1, prefix_budget_bytes=0) as session:
        for number, choice in enumerate(CHOICES):
            for prompt in prompts:
                right[number, prompt] = session.use(choice).ask(prompt, max_tokens=4).token_ids
    size_bytes = files["a"][0].stat().st_size
    rng = np.random.default_rng(seed)
    process, half_bytes = psutil.Process(), 0
    with Session.of_files(
        base,
        files,
        threads=1,
        n_parallel=2,
        adapter_budget_bytes=int(2.5 * size_bytes),
        prefix_budget_bytes=KEPT_BYTES,
        prefix_cache=folder / "kv",
        prefix_cache_bytes=300_000,
        both_layouts=both_layouts,
    ) as session:
        for turn in range(n_turns):
            number = int(rng.integers(len(CHOICES)))
            prompt = prompts[int(rng.integers(len(prompts)))]
            kind = rng.integers(10)
            session.use(CHOICES[number])
            if kind < 7:
                assert session.ask(prompt, max_tokens=4).token_ids == right[number, prompt], (turn, number)
            elif kind < 9:
                pair = [session.submit(prompt, max_tokens=4), session.submit(prompts[0], max_tokens=4)]
                expected = [right[number, prompt], right[number, prompts[0]]]
                assert [pending.result().token_ids for pending in pair] == expected, (turn, number)
            else:
                left = session.stream(prompt, max_tokens=4)
                next(left, None)
                left.close()
            assert len(session.model.adapters) <= 2
            assert session.prefixes.store.used_bytes <= KEPT_BYTES
            if turn == n_turns // 2:
                gc.collect()
                half_bytes = process.memory_info().rss
        assert session.prefixes.disk.fault is None
        gc.collect()
        return process.memory_info().rss - half_bytes


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        grown_bytes = soak(Path(temporary), int(sys.argv[1]), both_layouts="both" in sys.argv)
        print(f"grown by {grown_bytes} bytes over the second half")  # noqa: T201
