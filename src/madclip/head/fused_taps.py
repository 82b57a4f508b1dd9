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
    from madclip.head.tower_adapters import TowerAdapters

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


def learned_scores(
    adapters: Adapters | TowerAdapters, tokens: Sequence[torch.Tensor], towards: torch.Tensor
) -> torch.Tensor:
    """S of every head, tap and patch, for tokens that are not learned, on the processor.

    Args:
        adapters: The adapters of all taps.
        tokens: For each tap [B, G, d].
        towards: [2, e], from `scoring.directions`.

    Returns:
        [H, T, B, G, 2], float32.
    """
    parts = adapters.parts
    layers = Layers(parts[0].activation == "leaky_relu", parts[0].norm == "layer_norm")
    towards = towards.to(tokens[0].dtype)
    batch, patches, width = tokens[0].shape
    weights = zip(*(of_all.unbind() for part in parts for of_all in (part.shared, part.heads)), strict=True)
    taps = [
        _TapScores.apply(each.reshape(-1, width), towards, layers, *of_tap)  # type: ignore[no-untyped-call]
        for each, of_tap in zip(tokens, weights, strict=True)
    ]
    found: torch.Tensor = torch.stack(taps).permute(3, 0, 2, 1).unflatten(2, (batch, patches))
    return found


class _TapScores(torch.autograd.Function):
    """S of a tap, [2, M, H], from the tokens of all towers side by side [M, d]; weights: shared and heads of each."""

    @staticmethod
    def forward(
        ctx: Any, tokens: torch.Tensor, towards: torch.Tensor, layers: Layers, *weights: torch.Tensor
    ) -> torch.Tensor:
        branches, count, embed_dim, _ = weights[1].shape
        downs = [shared.flatten(0, 1).to(tokens.dtype) for shared in weights[::2]]
        ups = [heads.flatten(1, 2).to(tokens.dtype) for heads in weights[1::2]]
        befores = [tokens.new_empty(len(tokens), len(down)) for down in downs]
        hiddens = [torch.empty_like(before) if layers.norm else before for before in befores]
        features = tokens.new_empty(branches, len(tokens), count * embed_dim)
        lengths = features.new_empty(branches, len(tokens), count, dtype=_wide(tokens.dtype))
        dots = features.new_empty(2, len(tokens), count)
        for block in _blocks(len(tokens)):
            for own, down, before, hidden in zip(_apart(tokens, downs), downs, befores, hiddens, strict=True):
                layers.activate(torch.mm(own[block], down.mT, out=before[block]))
                if layers.norm:
                    each = before[block].unflatten(1, (branches, -1))
                    hidden[block] = F.layer_norm(each, each.shape[2:], eps=EPSILON).flatten(1)
            for r in range(branches):
                flat = features[r, block]
                torch.mm(_of_branch(hiddens[0][block], r, branches), ups[0][r].mT, out=flat)
                for hidden, up in zip(hiddens[1:], ups[1:], strict=True):
                    flat.addmm_(_of_branch(hidden[block], r, branches), up[r].mT)
                rows = layers.activate(flat).view(-1, embed_dim)
                torch.linalg.vector_norm(rows, dim=-1, dtype=lengths.dtype, out=lengths[r, block].view(-1))
                for b in range(r, 2, branches):
                    torch.mv(rows, towards[b], out=dots[b, block].view(-1))
        lengths.clamp_min_(1e-12)
        scores = dots / lengths
        ctx.save_for_backward(tokens, towards, features, lengths, scores, *downs, *ups, *befores, *hiddens)
        ctx.layers = layers
        return scores

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tokens, towards, features, lengths, scores, *rest = ctx.saved_tensors
        downs, ups, befores, hiddens = (rest[i : i + len(rest) // 4] for i in range(0, len(rest), len(rest) // 4))
        branches, embed_dim = len(features), towards.shape[1]
        # s = r . t / |r|: ds/dr = t / |r| - s r / |r|^2, ds/dt = r / |r|.
        outward = gradients[0] / lengths
        inward = -outward * scores / lengths
        if branches == 1:
            inward = inward.sum(0, keepdim=True)
        outward, inward = outward.to(tokens.dtype), inward.to(tokens.dtype)
        to_downs, to_ups, (to_towards,) = (
            [torch.zeros_like(t, dtype=_wide(t.dtype)) for t in of_kind] for of_kind in (downs, ups, [towards])
        )
        for block in _blocks(len(tokens)):
            to_hiddens = [torch.empty_like(hidden[block]) for hidden in hiddens]
            for r in range(branches):
                flat = features[r, block]
                rows = flat.view(-1, embed_dim)
                to_rows = rows * inward[r, block].reshape(-1, 1)
                for b in range(r, 2, branches):
                    weight = outward[b, block].reshape(-1)
                    to_rows.addr_(weight, towards[b])
                    to_towards[b] += torch.mv(rows.mT, weight)
                to_flat = to_rows.view_as(flat)
                ctx.layers.deactivate(to_flat, flat)
                for to_up, to_hidden, hidden, up in zip(to_ups, to_hiddens, hiddens, ups, strict=True):
                    _add_product(to_up[r], to_flat.mT, _of_branch(hidden[block], r, branches))
                    torch.mm(to_flat, up[r], out=_of_branch(to_hidden, r, branches))
            each = zip(_apart(tokens, downs), to_downs, to_hiddens, befores, strict=True)
            for own, to_down, to_hidden, before in each:
                if ctx.layers.norm:
                    to_hidden = _before_norm(to_hidden, before[block], before.shape[1] // branches)  # noqa: PLW2901
                ctx.layers.deactivate(to_hidden, before[block])
                _add_product(to_down, to_hidden.mT, own[block])
        learned = []
        for to_down, to_up in zip(to_downs, to_ups, strict=True):
            learned += [to_down.unflatten(0, (branches, -1)), to_up.unflatten(1, (-1, embed_dim))]
        return None, to_towards.to(towards.dtype), None, *learned


def _apart(tokens: torch.Tensor, downs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The tokens of each tower, [M, d] each."""
    return torch.split(tokens, [down.shape[1] for down in downs], 1)


def _of_branch(hidden: torch.Tensor, branch: int, branches: int) -> torch.Tensor:
    """The columns of one branch, a view of [M, R x h]."""
    width = hidden.shape[1] // branches
    return hidden[:, branch * width : (branch + 1) * width]


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
