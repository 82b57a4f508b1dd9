"""Metrics that a reader can trust: pure functions on arrays, each with its interval, defined on every input."""

from madclip.metrics.compare import mean_interval, paired_bootstrap, paired_delong, wilcoxon
from madclip.metrics.image import Estimate, auroc, average_precision, confusion
from madclip.metrics.intervals import bootstrap_interval, delong_interval, share_interval, wilson_interval
from madclip.metrics.pixel import PixelHistogram, dice, pixel_auroc, surface_dice
from madclip.metrics.scored import Scored

__all__ = [
    "Estimate",
    "PixelHistogram",
    "Scored",
    "auroc",
    "average_precision",
    "bootstrap_interval",
    "confusion",
    "delong_interval",
    "dice",
    "mean_interval",
    "paired_bootstrap",
    "paired_delong",
    "pixel_auroc",
    "share_interval",
    "surface_dice",
    "wilcoxon",
    "wilson_interval",
]
