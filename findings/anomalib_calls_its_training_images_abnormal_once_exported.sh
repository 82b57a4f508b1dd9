#!/usr/bin/env bash
# anomalib 2.7.0: a detector calls an image normal, and its own export calls the same image abnormal with a score of 1.
#
# An exported model carries its preprocessing. A good guess: it is the preprocessing of the fit, so that `Engine.predict` and the
# exported file agree up to rounding. Seen: `Resize(antialias=True)` becomes `antialias=False` on the way out (and in `model(images)`),
# with no word in the log, though ONNX has had antialiasing since opset 18. Resized like that the noise of a detector is not averaged
# out, so every image looks rougher than all that was learned: radiographs of 1024 pixels with a noise of 10 grey levels, from
# the training set itself, score 0.0 (normal) before and 1.0 (abnormal) after. The exported model gives 0.0 as well where the image
# was resized with antialiasing before. Resize outside the model, for the fit too, or check the export on a normal image at full size.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check \
    torch==2.14.1 torchvision==0.29.1 anomalib==2.7.0 lightning==2.6.6 timm==1.0.31 numpy==2.4.6 pillow==13.0.0 \
    onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from anomalib.data import Folder, PredictDataset
from anomalib.deploy import ExportType
from anomalib.engine import Engine
from anomalib.models import Padim
from PIL import Image

torch.manual_seed(0)
draw = np.random.default_rng(0)
body = 40 + 150 * np.outer(np.hanning(1024), np.hanning(1024))
Path("normal").mkdir()
Path("some").mkdir()
for number in range(12):
    image = Image.fromarray(np.clip(body + draw.normal(0, 10, body.shape), 0, 255).astype(np.uint8)).convert("RGB")
    image.save(f"normal/{number}.png")
    if number < 3:
        image.save(f"some/{number}.png")

images = Folder(
    name="made", root=".", normal_dir="normal", train_batch_size=4, eval_batch_size=4, num_workers=0,
    test_split_mode="synthetic", val_split_mode="same_as_test",
)
model = Padim(backbone="resnet18", pre_trained=False, layers=["layer1"], n_features=40)  # no weights to download
engine = Engine(
    default_root_dir="out", accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False
)
engine.fit(model, datamodule=images)
before = [float(score) for batch in engine.predict(model, dataset=PredictDataset("some")) for score in batch.pred_score]
path = engine.export(model, ExportType.ONNX, input_size=(1024, 1024))
exported = onnxruntime.InferenceSession(str(path))


def after(image):
    given = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255
    score, label = exported.run(["pred_score", "pred_label"], {"input": given})
    assert bool(label.item()) == (score.item() >= 0.5)
    return score.item()


whole = [after(Image.open(f"some/{number}.png")) for number in range(3)]
shrunk = [
    after(Image.open(f"some/{number}.png").resize((256, 256), Image.Resampling.BILINEAR).resize((1024, 1024), Image.Resampling.NEAREST))
    for number in range(3)
]
print(f"three normal images: Engine.predict {before}, exported {whole}, exported, shrunk with antialiasing before {shrunk}")
assert max(before) < 0.5 < min(whole) and max(shrunk) < 0.5
PYTHON
echo "as stated"
