"""Digits are scikit-learn's, whichever way they are read."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from kdrun.data.sets import digits
from kdrun.data.sets.digits import Digits


@pytest.mark.parametrize("found", [True, False])
def test_pixels_labels_and_split(found, monkeypatch):
    if not found:  # as where scikit-learn keeps its file elsewhere
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    arrays = Digits.load(Digits.Config(name="digits"))
    images, labels = load_digits(return_X_y=True)
    pixels = np.concatenate([arrays.train_images, arrays.test_images]).reshape(-1, 64)
    assert np.array_equal(pixels, np.rint(images * 255 / 16))
    assert np.array_equal(np.concatenate([arrays.train_labels, arrays.test_labels]), labels)
    assert len(arrays.test_labels) == digits.NUM_TEST == 400


def test_reading_them_does_not_import_scikit_learn():
    code = "import sys; from kdrun.data.sets.digits import Digits; Digits.load(Digits.Config(name='digits')); print('sklearn' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )
