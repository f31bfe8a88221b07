#!/bin/sh
# Convert the digits run with its fixed masks, fold the result, and compare both files with the dense model.
set -eu
cd "$(dirname "$0")"
mkdir -p out
set -x
spdexport convert run --factory digits_cnn.py:DigitsCNN --input-shape 1x1x16x16 \
    --masks run/fixed_masks.safetensors -o out/digits.onnx
spdexport fold out/digits.onnx -o out/folded.onnx
python accuracy.py out/digits.onnx out/folded.onnx
