"""What an episode file holds, compared."""

from __future__ import annotations

import h5py
import numpy as np


def contents(path):
    with h5py.File(path) as file:
        return {name: column[:] for name, column in file.items()}, {
            name: str(value) for name, value in file.attrs.items()
        }


def assert_same(path, reference):
    for found, expected in zip(contents(path), contents(reference)):
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
