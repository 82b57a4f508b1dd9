#!/usr/bin/env bash
# OpenVINO 2026.4.0: an ONNX model that shrinks its own images with antialiasing is run without it, and nothing says so.
#
# `Resize` of ONNX has had an attribute `antialias` since opset 18, and a model that carries its own resizing is sure to see what it saw
# in training. A good guess: OpenVINO does as ONNX Runtime does, or refuses the attribute. Seen: it reads the model and leaves
# the attribute out. Of fine noise, as every radiograph and ultrasound image has it, ONNX Runtime keeps a standard deviation of 0.05
# when the side shrinks to a quarter, which is what Pillow has too, OpenVINO three times as much, and a bright line of one
# pixel is gone. A detector then calls texture abnormal which it was never shown. Growing an image is right in both. Resize
# outside the model, or convert it by `openvino.convert_model` from torch, which keeps the antialiasing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    openvino==2026.4.0 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6 pillow==13.0.0
"$folder/venv/bin/python" -W error - "$folder/resize.onnx" <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper
from PIL import Image

noise = np.random.default_rng(0).random((256, 256), np.float32)
line = np.zeros((256, 256), np.float32)
line[:, 100] = 1


def resized(image, side):
    """As torch.onnx.export writes `interpolate(..., mode="bilinear", antialias=True)`."""
    node = helper.make_node("Resize", ["image", "", "", "size"], ["small"], mode="linear", antialias=1, exclude_outside=1)
    size = helper.make_tensor("size", TensorProto.INT64, [4], [1, 1, side, side])
    given = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 256, 256])
    made = helper.make_tensor_value_info("small", TensorProto.FLOAT, [1, 1, side, side])
    graph = helper.make_graph([node], "resize", [given], [made], [size])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, sys.argv[1])
    by_ort = onnxruntime.InferenceSession(sys.argv[1]).run(None, {"image": image[None, None]})[0][0, 0]
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    by_openvino = openvino.compile_model(sys.argv[1], "CPU", exact)([image[None, None]])[0][0, 0]
    by_pillow = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
    return by_pillow, by_ort, by_openvino


for name, image, measure in (("noise, deviation", noise, np.std), ("a line, brightest", line, np.max)):
    print(f"{name}: Pillow, ONNX Runtime, OpenVINO: {[round(float(measure(small)), 3) for small in resized(image, 64)]}")
pillow, ort, vino = resized(noise, 64)
assert np.allclose(pillow, ort, atol=1e-5) and vino.std() > 3 * ort.std()
pillow, ort, vino = resized(line, 64)
assert np.allclose(pillow, ort, atol=1e-5) and ort.max() > 0.15 and vino.max() == 0
pillow, ort, vino = resized(noise, 512)
assert np.allclose(ort, vino, atol=1e-5)
PYTHON
echo "as stated"
