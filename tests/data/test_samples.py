import pytest
from written import write, write_mask

from madclip.data import Sample, read_sample
from madclip.errors import DataError


def test_read_sample(tmp_path):
    image, mask = write(tmp_path / "a.png"), write_mask(tmp_path / "m.png")
    read, lesion = read_sample(Sample(image, 1, mask))
    assert read.size == lesion.shape == (10, 12)
    assert lesion.sum() == 9
    assert read_sample(Sample(image, 1))[1] is None
    empty = write_mask(tmp_path / "empty.png", lesion=False)
    assert read_sample(Sample(image, 0, empty))[1] is None
    other = write_mask(tmp_path / "other.png", (20, 12))
    for sample, message in (
        (Sample(image, 1, empty), r"empty\.png: the mask of an abnormal image is empty"),
        (Sample(image, 0, mask), r"m\.png: marks a lesion in a normal image"),
        (Sample(image, 1, other), r"other\.png: mask of 12 x 20 pixels for an image of 12 x 10 .*a\.png"),
        (Sample(image, 1, tmp_path / "none.png"), r"none\.png: cannot be opened"),
    ):
        with pytest.raises(DataError, match=message):
            read_sample(sample)
