"""CFLOW-AD's log-likelihood by madclip and by anomalib 2.7: the same weights on the same features, in two processes.

    python benchmarks/flow_likelihood.py --environment PEERS

PEERS is the second environment that `benchmarks/peers.py` makes. Permutations and weights are those of our
flow, the weights moved a little from where they start. The code of a position has the same waves in another order,
which is undone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from two_sides import compare

if TYPE_CHECKING:
    from pathlib import Path

    from two_sides import Arrays

CHANNELS, CONDITION, GRID, IMAGES = 48, 32, (9, 7), 3


def ours(folder: Path) -> Arrays:
    """Likelihoods per channel and codes by madclip, of weights and features that it draws."""
    import torch
    from safetensors.torch import save_file

    from madclip.methods.flow import Flow, position_code

    generator = torch.Generator().manual_seed(0)
    flow = Flow(CHANNELS, CONDITION, seed=0)
    with torch.no_grad():
        for parameter in (one for one in flow.parameters() if one.requires_grad):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    code = position_code(GRID, CONDITION)
    features = torch.randn(IMAGES * len(code), CHANNELS, generator=generator)
    with torch.no_grad():
        found = flow.log_likelihood(features, code.repeat(IMAGES, 1)) / CHANNELS
    save_file({name: value.contiguous() for name, value in flow.couplings.state_dict().items()}, folder / "weights")
    np.savez(folder / "features.npz", features=features.numpy())
    return {"likelihood": found.numpy(), "code": code.numpy()}


def theirs(folder: Path) -> Arrays:
    """Likelihoods per channel and codes by anomalib, of the same."""
    import torch
    from anomalib.models.image.cflow.utils import cflow_head, get_logp, positional_encoding_2d
    from safetensors.torch import load_file

    with np.load(folder / "features.npz") as arrays:
        features = torch.from_numpy(arrays["features"])
    decoder = cflow_head(CONDITION, 8, 1.9, CHANNELS)
    decoder.load_state_dict(load_file(folder / "weights"))
    waves = positional_encoding_2d(CONDITION, *GRID).flatten(1).T
    columns, rows = waves.chunk(2, 1)
    code = torch.cat([wave for axis in (rows, columns) for wave in (axis[:, ::2], axis[:, 1::2])], 1)
    with torch.no_grad():
        latent, jacobian = decoder(features, [code.repeat(IMAGES, 1)])
        found = get_logp(CHANNELS, latent, jacobian) / CHANNELS
    return {"likelihood": found.numpy(), "code": code.numpy()}


if __name__ == "__main__":
    compare(__file__, __doc__, ours, theirs)
