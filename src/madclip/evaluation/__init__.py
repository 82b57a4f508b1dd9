"""Metrics that a reader can trust: each a pure function, with its interval, defined on every input."""

from madclip.evaluation.compare import mean_interval, paired_bootstrap, paired_delong, wilcoxon
from madclip.evaluation.intervals import bootstrap_interval, delong_interval, share_interval, wilson_interval
from madclip.evaluation.metrics import Estimate, auroc, average_precision, confusion
from madclip.evaluation.pixel import PixelHistogram, dice, pixel_auroc, surface_dice
from madclip.evaluation.result import EvaluationResult, evaluate_scores

__all__ = [
    "Estimate",
    "EvaluationResult",
    "PixelHistogram",
    "auroc",
    "average_precision",
    "bootstrap_interval",
    "confusion",
    "delong_interval",
    "dice",
    "evaluate_scores",
    "mean_interval",
    "paired_bootstrap",
    "paired_delong",
    "pixel_auroc",
    "share_interval",
    "surface_dice",
    "wilcoxon",
    "wilson_interval",
]
