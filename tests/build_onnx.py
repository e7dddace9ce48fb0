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


def write_adapter(path: Path, tensors, *, model_version=0, adapter_version=1) -> Path:
    """Writes a file with onnxruntime's own writer."""
    kept = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    file = ort.AdapterFormat()
    file.set_adapter_version(adapter_version)
    file.set_model_version(model_version)
    file.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(values) for name, values in kept.items()})
    file.export_adapter(str(path))
    return path
