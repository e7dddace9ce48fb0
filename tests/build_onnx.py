"""Runs ONNX graphs by onnxruntime's plainest call, and writes its adapter files with anything in them."""

from pathlib import Path

import numpy as np
import onnxruntime as ort


def plain_session(path: Path):
    """A session as anybody would open it, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def empty_cache(session):
    """Past keys and values of no tokens."""
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    return {
        entry.name: np.zeros((1, entry.shape[1], 0, entry.shape[3]), kinds[entry.type])
        for entry in session.get_inputs()
        if entry.name.startswith("past_key_values.")
    }


def onnx_logits(path: Path, ids, run_options=None, **feeds):
    """(tokens, vocabulary), float32, of one pass over all tokens."""
    session = plain_session(path)
    inputs = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    (logits,) = session.run(["logits"], inputs | empty_cache(session) | feeds, run_options)
    return logits[0].astype(np.float32)


def onnx_step(session, ids, mask, past):
    """One run over `ids` (rows, tokens) behind a cache: every output by its name, and the cache to go on with."""
    names = [entry.name for entry in session.get_outputs()]
    out = dict(zip(names, session.run(None, {"input_ids": ids, "attention_mask": mask} | past), strict=True))
    return out, {name.replace("present", "past_key_values"): out[name] for name in names[1:]}


def onnx_logits_in_pieces(path: Path, ids, sizes):
    """(tokens, vocabulary) of runs over so many tokens each, one behind the other."""
    session = plain_session(path)
    past, rows, at = empty_cache(session), [], 0
    for n in sizes:
        out, past = onnx_step(session, np.array([ids[at : at + n]]), np.ones((1, at + n), np.int64), past)
        rows.append(out["logits"][0])
        at += n
    return np.concatenate(rows)


def padded_rows(path: Path, rows):
    """Rows padded with 0 on the right to the longest, together, and then the token 7 behind each: logits of both."""
    session, lengths = plain_session(path), np.array([len(row) for row in rows])
    n = int(lengths.max())
    ids = np.array([row + [0] * (n - len(row)) for row in rows])
    mask = (np.arange(n)[None] < lengths[:, None]).astype(np.int64)
    past = {name: np.repeat(values, len(rows), axis=0) for name, values in empty_cache(session).items()}
    out, past = onnx_step(session, ids, mask, past)
    mask = (np.arange(n + 1)[None] < lengths[:, None] + 1).astype(np.int64)
    last, _ = onnx_step(session, np.full((len(rows), 1), 7), mask, past)
    return out["logits"], last["logits"]


def write_adapter(path: Path, tensors, *, model_version=0, adapter_version=1) -> Path:
    """Writes a file with onnxruntime's own writer."""
    kept = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    file = ort.AdapterFormat()
    file.set_adapter_version(adapter_version)
    file.set_model_version(model_version)
    file.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(values) for name, values in kept.items()})
    file.export_adapter(str(path))
    return path
