"""llama.cpp stops in the middle of a computation when it is asked to, and goes on as if nothing was."""

import threading

import numpy as np
import pytest
from build_gguf import tiny_base
from slm_edge.edge.errors import EngineError
from slm_edge.edge.llama.abort import AbortFlag, stopped_by
from slm_edge.edge.llama.context import Context
from slm_edge.edge.llama.model import Model

IDS = [3 + i * 37 % 250 for i in range(512)]


def test_a_flag_ends_what_looks_at_it_and_nothing_else(tmp_path):
    with (
        Model.load(tiny_base(tmp_path / "base.gguf")) as model,
        Context(model, n_ctx_tokens=1024, n_batch_tokens=256, n_seq_max=2, threads=1) as context,
    ):
        context.decode(IDS[:256], 0)
        expected = context.logits()
        context.remove(0, 0)
        unset, flag = AbortFlag(), AbortFlag()
        flag.set()
        assert flag.is_set and not unset.is_set
        with pytest.raises(EngineError), stopped_by(flag, context):
            context.decode(IDS[:256], 0)
        context.remove(0, 0)
        # The set flag is looked at no more, and one that is not set changes nothing.
        for other in (None, unset):
            with stopped_by(other, context):
                context.decode(IDS[:256], 0, sequence=1)
            np.testing.assert_array_equal(context.logits(), expected)
            context.remove(1, 0)


def test_a_flag_is_seen_while_it_is_computed(tmp_path):
    """Set by another thread during one call: the batches that are left are not computed."""
    base = tiny_base(tmp_path / "base.gguf", n_layers=4, n_embd=256, n_ff=2048)
    with (
        Model.load(base) as model,
        Context(model, n_ctx_tokens=2048, n_batch_tokens=512, threads=1) as context,
    ):
        flag, computing = AbortFlag(), threading.Event()

        def stop():
            computing.wait()
            flag.set()

        stopper = threading.Thread(target=stop)
        stopper.start()
        with pytest.raises(EngineError), stopped_by(flag, context):
            computing.set()
            for _ in range(200):
                context.decode(IDS, 0)
                context.remove(0, 0)
        stopper.join()
