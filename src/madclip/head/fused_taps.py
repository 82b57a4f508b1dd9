"""Scores of a tap with their gradients, rows of patches at a time, so that what is in between stays in the cache.

The same numbers as `Adapters` followed by `scoring.patch_scores`, to which tests hold them. A training step spends four
fifths of its time here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from madclip.head.adapters import Adapters

_BLOCK = 2048
"""Most rows at once: smaller blocks spend more on starting products than they save on memory."""
SLOPE, EPSILON = 0.01, 1e-5
"""The leaky activation below zero, and what the layer norm adds to a variance."""


class Layers(NamedTuple):
    """What lies between the products of an adapter."""

    leaky: bool
    norm: bool

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """In place."""
        return F.leaky_relu_(x, SLOPE) if self.leaky else F.relu_(x)

    def deactivate(self, gradient: torch.Tensor, activated: torch.Tensor) -> None:
        """The gradient before the activation, in place of that after it."""
        if self.leaky:
            gradient.copy_(torch.ops.aten.leaky_relu_backward(gradient, activated, SLOPE, True))
        else:
            torch.ops.aten.threshold_backward.grad_input(gradient, activated, 0, grad_input=gradient)


def learned_scores(adapters: Adapters, tokens: Sequence[torch.Tensor], towards: torch.Tensor) -> torch.Tensor:
    """S of every head, tap and patch, for tokens that are not learned, on the processor.

    Args:
        adapters: The adapters of all taps.
        tokens: For each tap [B, G, d].
        towards: [2, e], from `scoring.directions`.

    Returns:
        [H, T, B, G, 2], float32.
    """
    layers = Layers(adapters.activation == "leaky_relu", adapters.norm == "layer_norm")
    towards = towards.to(tokens[0].dtype)
    batch, patches, width = tokens[0].shape
    taps = [
        _TapScores.apply(each.reshape(-1, width), shared, heads, towards, layers)  # type: ignore[no-untyped-call]
        for each, shared, heads in zip(tokens, adapters.shared.unbind(), adapters.heads.unbind(), strict=True)
    ]
    found: torch.Tensor = torch.stack(taps).permute(3, 0, 2, 1).unflatten(2, (batch, patches))
    return found


class _TapScores(torch.autograd.Function):
    """S of a tap, [2, M, H], from its tokens [M, d]."""

    @staticmethod
    def forward(
        ctx: Any, tokens: torch.Tensor, shared: torch.Tensor, heads: torch.Tensor, towards: torch.Tensor, layers: Layers
    ) -> torch.Tensor:
        branches, count, embed_dim, width = heads.shape
        down, up = shared.flatten(0, 1).to(tokens.dtype), heads.flatten(1, 2).to(tokens.dtype)
        before = tokens.new_empty(len(tokens), branches * width)
        hidden = torch.empty_like(before) if layers.norm else before
        features = tokens.new_empty(branches, len(tokens), count * embed_dim)
        lengths = features.new_empty(branches, len(tokens), count, dtype=_wide(tokens.dtype))
        dots = features.new_empty(2, len(tokens), count)
        for block in _blocks(len(tokens)):
            layers.activate(torch.mm(tokens[block], down.mT, out=before[block]))
            if layers.norm:
                each = before[block].unflatten(1, (branches, width))
                hidden[block] = F.layer_norm(each, (width,), eps=EPSILON).flatten(1)
            for r in range(branches):
                of_branch = hidden[block, r * width : (r + 1) * width]
                rows = layers.activate(torch.mm(of_branch, up[r].mT, out=features[r, block])).view(-1, embed_dim)
                torch.linalg.vector_norm(rows, dim=-1, dtype=lengths.dtype, out=lengths[r, block].view(-1))
                for b in range(r, 2, branches):
                    torch.mv(rows, towards[b], out=dots[b, block].view(-1))
        lengths.clamp_min_(1e-12)
        scores = dots / lengths
        ctx.save_for_backward(tokens, down, up, towards, before, hidden, features, lengths, scores)
        ctx.layers = layers
        return scores

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tokens, down, up, towards, before, hidden, features, lengths, scores = ctx.saved_tensors
        branches, embed_dim = len(up), towards.shape[1]
        width = before.shape[1] // branches  # of the layer between, which need not be that of the tokens
        # s = r . t / |r|: ds/dr = t / |r| - s r / |r|^2, ds/dt = r / |r|.
        outward = gradients[0] / lengths
        inward = -outward * scores / lengths
        if branches == 1:
            inward = inward.sum(0, keepdim=True)
        outward, inward = outward.to(tokens.dtype), inward.to(tokens.dtype)
        to_down, to_up, to_towards = (torch.zeros_like(t, dtype=_wide(t.dtype)) for t in (down, up, towards))
        for block in _blocks(len(tokens)):
            to_hidden = torch.empty_like(hidden[block])
            for r in range(branches):
                flat, of_branch = features[r, block], slice(r * width, (r + 1) * width)
                rows = flat.view(-1, embed_dim)
                to_rows = rows * inward[r, block].reshape(-1, 1)
                for b in range(r, 2, branches):
                    weight = outward[b, block].reshape(-1)
                    to_rows.addr_(weight, towards[b])
                    to_towards[b] += torch.mv(rows.mT, weight)
                to_flat = to_rows.view_as(flat)
                ctx.layers.deactivate(to_flat, flat)
                _add_product(to_up[r], to_flat.mT, hidden[block, of_branch])
                torch.mm(to_flat, up[r], out=to_hidden[:, of_branch])
            if ctx.layers.norm:
                to_hidden = _before_norm(to_hidden, before[block], width)
            ctx.layers.deactivate(to_hidden, before[block])
            _add_product(to_down, to_hidden.mT, tokens[block])
        shape = branches, -1, tokens.shape[1]
        return None, to_down.view(shape), to_up.unflatten(1, (-1, embed_dim)), to_towards.to(towards.dtype), None


def _blocks(rows: int) -> Iterator[slice]:
    step = -(-rows // -(-rows // _BLOCK))  # blocks of one size
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Adds left @ right, in the total's type: many bfloat16 blocks summed in bfloat16 would lose the small ones."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _before_norm(gradient: torch.Tensor, before: torch.Tensor, width: int) -> torch.Tensor:
    """The gradient before the layer norm of every branch, both [M, R x d]."""
    each = before.unflatten(1, (-1, width))
    _, mean, scale = torch.native_layer_norm(each, (width,), None, None, EPSILON)
    back: torch.Tensor = torch.ops.aten.native_layer_norm_backward(
        gradient.view_as(each), each, (width,), mean, scale, None, None, (True, False, False)
    )[0]
    return back.flatten(1)
