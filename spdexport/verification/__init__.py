"""Whether an ONNX file computes the model that was meant: edge by edge, each with its own status."""
