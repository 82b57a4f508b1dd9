"""What scikit-learn asks of an estimator, and how one travels to another process: as the bytes of its folder."""

from __future__ import annotations

import inspect
import io
import struct
import tempfile
import zipfile
from abc import ABC, abstractmethod
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
import torch
from PIL.Image import Image as Picture

from madclip.backbones.names import default_recipe
from madclip.backbones.spec import Backbone
from madclip.data.ref import ImageRef
from madclip.errors import CheckpointError, DataError, RecipeError
from madclip.files import first_line
from madclip.prediction import raised
from madclip.recipe import Recipe
from madclip.storage import PARTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy.typing as npt

    from madclip.data.arrays import ImageLike
    from madclip.prediction import Prediction
    from madclip.state import Fitted

UNREADABLE = (zipfile.BadZipFile, OSError, RuntimeError, ValueError, LookupError, EOFError, struct.error)
"""What reading a damaged archive raises."""
LARGEST = 2**30
"""More bytes than any detector has are not unpacked."""


class Estimator(ABC):
    """The side of a detector that scikit-learn sees; what is learned and said is its class's own.

    Parameters are the arguments of the constructor, each kept as it was given under its name with an underscore.
    """

    fitted: Fitted | None
    engine: Callable[..., Any] | None
    _estimator_type = "classifier"
    """By which scikit-learn before 1.6 knows that folds need images of both classes."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write the detector's folder."""

    @abstractmethod
    def predict_iter(self, inputs: Iterable[ImageLike], *, native: bool = True) -> Iterator[Prediction | DataError]:
        """A prediction, or the error that its file gave, for each input in order."""

    @classmethod
    @abstractmethod
    def load(cls, folder: str | Path, *, device: str) -> Self:
        """A detector from a folder that `save` wrote."""

    @property
    def classes_(self) -> npt.NDArray[np.int64]:
        """The labels: 0 normal, 1 abnormal."""
        return np.array([0, 1])

    @overload
    def predict(self, inputs: ImageLike) -> Prediction: ...  # type: ignore[overload-overlap]  # a str is one image
    @overload
    def predict(self, inputs: Sequence[ImageLike]) -> list[Prediction]: ...
    def predict(self, inputs: ImageLike | Sequence[ImageLike]) -> Prediction | list[Prediction]:
        """Predictions for one image or several.

        Raises:
            DataError: An image cannot be read; `predict_iter` goes on with the rest instead.
        """
        if isinstance(inputs, (str, Path, ImageRef, np.ndarray, torch.Tensor, Picture)):
            return self.predict([inputs])[0]
        return [raised(result) for result in self.predict_iter(inputs)]

    def decision_function(self, images: Sequence[ImageLike]) -> npt.NDArray[np.float64]:
        """Raw scores [N], which scikit-learn's metrics of ranking such as `roc_auc` ask for.

        Raises:
            DataError: An image cannot be read.
        """
        return np.array([raised(found).score for found in self.predict_iter(list(images), native=False)])

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002  (scikit-learn's)
        """The arguments of the constructor, by name."""
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        return {name: getattr(self, f"_{name}") for name in names}

    def set_params(self, **params: Any) -> Self:
        """Change arguments of the constructor; what was learned with others is forgotten.

        Raises:
            RecipeError: There is no such argument.
        """
        known = self.get_params()
        if unknown := sorted(set(params) - set(known)):
            raise RecipeError(f"there is no parameter {unknown[0]!r}; there are {', '.join(known)}")
        if params:
            self.__init__(**(known | params))  # type: ignore[misc]  # it only stores them
            for name in ("recipe", "backbone"):
                self.__dict__.pop(name, None)  # what was made of the old ones
        return self

    def __sklearn_clone__(self) -> Self:
        """One that is not fitted; a loaded backbone is shared, since nothing changes it."""
        return type(self)(**self.get_params())

    def __sklearn_is_fitted__(self) -> bool:
        """Whether it learned something, which scikit-learn's pipelines ask before they hand images on."""
        return self.fitted is not None

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn from 1.6 on knows of an estimator."""
        from sklearn.utils import ClassifierTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(multi_class=False),
            transformer_tags=None,
            regressor_tags=None,
        )

    def __repr__(self) -> str:
        """How it was made, and what it learned from: `MadCLIP('madclip', backbone='tiny', ..., not fitted)`."""
        given = self.get_params()
        recipe, backbone = given.pop("recipe"), given.pop("backbone")
        recipe = default_recipe(backbone) if recipe is None else recipe
        changed = isinstance(recipe, Recipe) and recipe != Recipe.preset(recipe.name)
        given = {
            "backbone": backbone.spec.id if isinstance(backbone, Backbone) else str(backbone),
            **{name: value for name, value in given.items() if value != "auto"},
        }
        said = [repr(recipe.name if isinstance(recipe, Recipe) else recipe) + " with changes" * changed]
        said += [f"{name}={value!r}" for name, value in given.items()]
        return f"{type(self).__name__}({', '.join([*said, _learned(self.fitted)])})"

    def __reduce__(self) -> tuple[Any, ...]:
        """What is pickled: plain values, and of a fitted detector the files of its folder.

        Unpickling a fitted detector calls `load` and nothing else, with all that it checks; the backbone is not part of
        it and is looked for where it was. An export that computes in torch's place (`engine`) stays behind.
        """
        if self.fitted is not None:
            return type(self).from_files, (_packed(self.save), self._device)  # type: ignore[attr-defined]
        params = self.get_params()
        recipe, backbone = params["recipe"], params["backbone"]
        params["recipe"] = recipe.to_dict() if isinstance(recipe, Recipe) else recipe
        fingerprint = None
        if isinstance(backbone, Backbone):
            fingerprint = backbone.fingerprint
            dtype = str(backbone.dtype).removeprefix("torch.")
            params |= {"backbone": backbone.spec.source, "device": str(backbone.device), "dtype": dtype}
        else:
            params["backbone"] = str(backbone)
        return type(self).from_params, (params, fingerprint)

    @classmethod
    def from_files(cls, files: bytes, device: str) -> Self:
        """A detector from the archive of its folder that was pickled.

        Raises:
            CheckpointError: As `load` does; or the archive is damaged or holds anything else.
        """
        with _folder_of(files) as folder:
            return cls.load(folder, device=device)

    @classmethod
    def from_params(cls, params: dict[str, Any], fingerprint: str | None) -> Self:
        """A detector that is not fitted, from arguments that were pickled.

        Raises:
            CheckpointError: The backbone that was loaded there, by its fingerprint, is missing or another one here.
        """
        recipe = params["recipe"]
        made = cls(**(params | {"recipe": Recipe.from_dict(recipe) if isinstance(recipe, dict) else recipe}))
        found = made.backbone.fingerprint if fingerprint else None  # type: ignore[attr-defined]
        if found != fingerprint:
            raise CheckpointError(f"{params['backbone']}: holds another backbone here than in the process it came from")
        return made


def _learned(fitted: Fitted | None) -> str:
    if fitted is None:
        return "not fitted"
    facts, known = fitted.provenance, fitted.calibration
    if fitted.modalities:
        return f"learned {', '.join(map(repr, fitted.modalities))} from {facts.learned}"
    return f"learned from {facts.learned}, {f'threshold {known.threshold:.4f}' if known else 'not calibrated'}"


def _packed(save: Callable[[Path], None]) -> bytes:
    """The files of the folder that `save` writes, as a ZIP archive without compression."""
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        folder = Path(place) / "detector"
        save(folder)
        for name in PARTS:
            archive.write(folder / name, name)
    return packed.getvalue()


@contextmanager
def _folder_of(files: bytes) -> Iterator[Path]:
    """A folder with the files that `_packed` gave, for as long as the block takes.

    Raises:
        CheckpointError: They are not exactly a detector's files as they are, or too large.
    """
    parts = _parts_of(files)
    with tempfile.TemporaryDirectory() as place:
        for name in PARTS:  # never a name that the archive gives
            (Path(place) / name).write_bytes(parts[name])
        yield Path(place)


def _parts_of(files: bytes) -> dict[str, bytes]:
    refused = "a pickled detector: holds other files than a detector has, or too large ones"
    try:
        with zipfile.ZipFile(io.BytesIO(files)) as archive:
            entries = archive.infolist()
            stored = all(e.compress_type == zipfile.ZIP_STORED and e.file_size == e.compress_size for e in entries)
            if sorted(e.filename for e in entries) != sorted(PARTS) or not stored or len(files) > LARGEST:
                raise CheckpointError(refused)
            return {name: archive.read(name) for name in PARTS}
    except UNREADABLE as error:
        raise CheckpointError(f"a pickled detector: damaged ({first_line(error)})") from error
