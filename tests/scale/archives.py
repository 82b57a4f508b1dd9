"""A detector of these tests: it opens no image, and does what an image's name asks for."""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from madclip.errors import DataError
from madclip.prediction import Prediction
from madclip.scale.archive import predict_archive
from madclip.scale.listing import listing


@dataclass(frozen=True)
class Stub:
    """Scores by name and frame alone. `poison` in a name kills whoever reads it, `broken` is an error.

    seconds: How long an image takes. folder: Each worker leaves a file there that is called like its process.
    """

    seconds: float = 0.0
    folder: str = ""
    name = "stub"
    sha256 = "0" * 64
    axis = "axial"

    def facts(self):
        return {"detector": self.sha256}

    def open(self):
        if self.folder:
            Path(self.folder, str(os.getpid())).touch()
        return self

    def predict_iter(self, inputs, *, native):
        nothing = np.zeros((1, 1), np.float32)
        for image in inputs:
            time.sleep(self.seconds)
            if "poison" in image.path.name:
                os.kill(os.getpid(), signal.SIGKILL)
            if image.path.name == "none":
                yield DataError("cannot be opened")
            elif "broken" in image.path.name:
                yield DataError(f"{image}: broken")
            else:
                yield Prediction((hash(image.frame or 0) % 997) / 997, nothing, (1, 1), image)


def executor_of(kind, address, workers):
    if kind == "ray":
        from madclip.scale.ray_pool import RayExecutor

        return RayExecutor(address, workers)
    from madclip.scale.executor import LocalProcesses

    return LocalProcesses(workers)


def main(table, out, kind="local", address="", workers="1", seconds="0", folder=""):
    """One run, as the command line would do it: prints counts and the most memory the process had, in MB."""
    found = predict_archive(
        listing(table),
        table,
        Path(out),
        Stub(float(seconds), folder),
        executor=executor_of(kind, address or None, int(workers)),
    )
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"counts": found, "memory": int(peak.split()[1]) / 1024}))


if __name__ == "__main__":
    main(*sys.argv[1:])
