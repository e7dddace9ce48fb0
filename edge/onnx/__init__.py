"""The session on onnxruntime: folder, adapter file, engine, rows."""
