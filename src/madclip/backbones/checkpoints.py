"""Weights on disk: which format a path holds, and its tensors, read without ever running what is in the file."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from madclip.errors import CheckpointError
from madclip.files import digest, first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from madclip.backbones.configuration import ModelConfig
    from madclip.backbones.efficientnet import EfficientNetConfig
    from madclip.backbones.vit import VitConfig

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation of the SigLIPs."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

OPENAI_SHA256 = {
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "clip-vit-b-32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "clip-vit-b-16",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "clip-vit-l-14",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "clip-vit-l-14-336",
}
"""OpenAI's TorchScript archives, as published in the addresses of their downloads, and their catalogue ids."""

WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")

JSON_LIMIT = 16 * 1024**2
"""Bytes; a configuration is a few KB, an index of shards a few hundred."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights in one form, whatever file they came from.

    Attributes:
        path: File or folder, for messages.
        config: The model's sizes and activation.
        state: Tensors in the file's own precision, in the names of our modules; a CLIP's are those of transformers.
        mean: Channel means of the input normalisation.
        std: Channel standard deviations.
        folder: Where a tokenizer may lie.
        published: Catalogue id that the file's hash proves.
        guessed_activation: Whether no file says the activation, so that `config` holds a guess.
        assumed_normalisation: Whether a folder does not say `mean` and `std`, so that those usual for the family are
            taken. Single files in OpenAI's naming never say them: they are OpenAI's.
        plain_texts: Whether the tokenizer gets texts without punctuation, as open_clip gives them to all its SigLIPs.
    """

    path: Path
    config: ModelConfig | VitConfig | EfficientNetConfig
    state: dict[str, torch.Tensor]
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    folder: Path | None = None
    published: str | None = None
    guessed_activation: bool = False
    assumed_normalisation: bool = False
    plain_texts: bool = False


def read_checkpoint(path: Path) -> Checkpoint:
    """Weights from a Hugging Face folder, an open_clip folder or file, or an OpenAI file.

    Raises:
        CheckpointError: Nothing is there, the format is none of these, or the content is damaged or unsafe.
    """
    from madclip.backbones import huggingface_format, openai_format

    if path.is_dir():
        if huggingface_format.weight_files(path) and not openai_format.is_folder(path):
            return huggingface_format.read_folder(path)
        return openai_format.read_folder(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give a file, a folder, a hub name or a name of the catalogue")
    if path.suffix not in WEIGHT_SUFFIXES:
        raise CheckpointError(f"{path} is not a weights file (.pt, .pth, .bin or .safetensors)")
    if (path.parent / "config.json").is_file() and path in huggingface_format.weight_files(path.parent):
        return huggingface_format.read_folder(path.parent)
    return openai_format.read_file(path)


def read_tensors(path: Path) -> tuple[dict[str, Any], str | None]:
    """All named values of a weights file, and the catalogue id where the file is one of OpenAI's own archives.

    Raises:
        CheckpointError: Empty, damaged, other things than tensors, or a program (TorchScript) of unknown origin.
    """
    try:
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path} is empty: download it again")
        if path.suffix == ".safetensors":
            return _read_safetensors(path), None
        return _read_torch(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a sound safetensors file ({first_line(error)}): download it again"
        ) from None


def _read_torch(path: Path) -> tuple[dict[str, Any], str | None]:
    archive = zipfile.is_zipfile(path)
    if archive and _is_program(path):
        return _read_openai_program(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # noqa: BLE001 -- a damaged pickle may raise anything
        if type(error).__name__ == "UnpicklingError" and "Unsupported operand" not in str(error):
            raise CheckpointError(
                f"{path} holds Python objects beside tensors, which could run code, and was not loaded: "
                "convert it to safetensors where you trust it"
            ) from None
        raise CheckpointError(f"{path} is not a sound PyTorch file ({first_line(error)}): download it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    return content, None


def _is_program(path: Path) -> bool:
    """Whether a zip archive is TorchScript; a compressed state dict is refused, since torch writes none."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is not a sound PyTorch file ({first_line(error)}): download it again") from None
    if any(member.filename.endswith("constants.pkl") or "/code/" in member.filename for member in members):
        return True
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(f"{path} is a compressed archive, which torch never writes: download it again")
    return False


def _read_openai_program(path: Path) -> tuple[dict[str, Any], str | None]:
    found = digest(path)
    if found not in OPENAI_SHA256:
        raise CheckpointError(
            f"{path} is a TorchScript program and its SHA-256 ({found[:12]}...) is none of OpenAI's CLIP archives: "
            "it was not run; give its state dict instead"
        )
    program = torch.jit.load(path, map_location="cpu")
    return dict(program.state_dict()), OPENAI_SHA256[found]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: Missing, too long, or not a JSON object.
    """
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise CheckpointError(f"{path} is larger than {JSON_LIMIT // 1024**2} MB, no configuration is")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a JSON object")
    return content


def check_shapes(path: Path, expected: Mapping[str, Iterable[int]], found: Mapping[str, Any]) -> None:
    """Each tensor there, none beside, each of the right shape and backed by that many values.

    Raises:
        CheckpointError: One message with the first names of what is wrong.
    """
    wrong = [
        f"{name} is {list(found[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and list(found[name].shape) != list(shape)
    ]
    # A file may claim a huge tensor over a few stored bytes (strides of 0), or integers where weights belong.
    odd = [n for n in expected if n in found and not (found[n].is_floating_point() and is_backed(found[n]))]
    complaints = [
        f"{what}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in (
            ("missing", [name for name in expected if name not in found]),
            ("not part of the model", [name for name in found if name not in expected]),
            ("wrong shape", wrong),
            ("not plain floating-point values", odd),
        )
        if names
    ]
    if complaints:
        raise CheckpointError(f"{path} does not hold the weights it should; {'; '.join(complaints)}")


def is_backed(tensor: torch.Tensor) -> bool:
    """Whether as many values are stored as its shape claims."""
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def triple(path: Path, name: str, value: Any, default: tuple[float, float, float]) -> tuple[float, float, float]:
    """Three numbers of a preprocessing configuration.

    Raises:
        CheckpointError: Present, but not three numbers.
    """
    if value is None:
        return default
    if not (isinstance(value, list) and len(value) == 3 and all(isinstance(v, (int, float)) for v in value)):
        raise CheckpointError(f"{path}: {name} should be three numbers, not {value!r}")
    return float(value[0]), float(value[1]), float(value[2])
