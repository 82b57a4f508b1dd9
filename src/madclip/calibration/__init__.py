"""From the scores of a few shots to thresholds, probabilities, verdicts, and the out-of-distribution check."""
