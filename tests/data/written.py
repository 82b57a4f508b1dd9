"""What tests of data sets write: images, masks, and a data set as a list."""

import numpy as np
from PIL import Image as Picture


def write(path, value=100, size=(10, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(np.full(size, value, np.uint8)).save(path)
    return path


def write_mask(path, size=(10, 12), *, lesion=True):
    write(path, 0, size)
    if lesion:
        mask = np.zeros(size, np.uint8)
        mask[2:5, 3:6] = 255
        Picture.fromarray(mask).save(path)
    return path


def listed(dataset):
    return [
        (
            dataset.name(sample.image),
            sample.label,
            dataset.name(sample.mask) if sample.mask else None,
            sample.patient,
            sample.split,
        )
        for sample in dataset.samples
    ]
