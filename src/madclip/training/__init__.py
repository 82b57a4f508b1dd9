"""From shots to a trained head: token cache, loop, calibration."""
