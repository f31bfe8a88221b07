"""ONNX Runtime: what is installed, which of its providers run here, sessions on them, and timing."""
