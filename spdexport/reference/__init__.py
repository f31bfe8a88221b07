"""What a model computes in float64: one evaluator for programs of torch.export, one for ONNX files."""
