"""A fit that is killed at any moment goes on with --resume, and learns what it would have learned."""

import json
import random
import signal
import subprocess

import pytest

RUN = ("-c", "from madclip.cli import main; main()")


def learned(folder):
    """What a detector folder holds, without when and by what it was made."""
    facts = json.loads((folder / "detector.json").read_text())
    return (folder / "head.safetensors").read_bytes(), facts["calibration"], facts["recipe"]


@pytest.mark.soak
def test_kills_at_any_moment(tmp_path, start, soak, small_data, small):
    """Kills -9, at random moments of a fit with out-of-fold scores; nothing half written is ever at the output."""
    options = [*small, "--set", "epochs=4", "--shots", "4", "--folds", "2"]
    whole = start(*RUN, "fit", small_data, "--out", tmp_path / "whole", *options)
    assert whole.wait(300) == 0, whole.communicate()
    dice = random.Random(7)
    for number in range(soak(20)):
        out = tmp_path / f"killed{number}"
        process = start(*RUN, "fit", small_data, "--out", out, *options)
        try:
            process.wait(dice.uniform(0.5, 12))
        except subprocess.TimeoutExpired:  # still at work, as is wanted
            process.send_signal(signal.SIGKILL)
            process.wait(60)
        if out.exists():
            assert learned(out) == learned(tmp_path / "whole")
            continue
        again = start(*RUN, "fit", small_data, "--out", out, *options, "--resume")
        assert again.wait(300) == 0, again.communicate()
        assert learned(out) == learned(tmp_path / "whole")
