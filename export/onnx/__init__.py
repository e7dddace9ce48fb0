"""A base and its adapters become ONNX graphs."""
