"""What leaves the detector: result folders, and models in other formats."""
