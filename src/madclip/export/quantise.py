"""int8 by NNCF, for the engines that have it."""

from __future__ import annotations

from typing import Any


def quantise(nncf: Any, model: Any, shots: list[Any], *, interpolation: str) -> Any:
    """A model in int8, calibrated on shots.

    Maps are interpolated in float32: their log-odds lie close together, and in 8 bits scores drift to one side.

    Args:
        nncf: The library.
        model: As the engine holds it.
        shots: Inputs of the model, one image each.
        interpolation: The engine's name of that operation.
    """
    return nncf.quantize(
        model,
        nncf.Dataset(shots),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(shots),
        ignored_scope=nncf.IgnoredScope(types=[interpolation]),
    )
