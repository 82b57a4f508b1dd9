"""Metrics that a reader can trust: each a pure function, with its interval, defined on every input."""

from madclip.evaluation.metrics import Estimate, auroc, average_precision
from madclip.evaluation.pixel import pixel_auroc

__all__ = ["Estimate", "auroc", "average_precision", "pixel_auroc"]
