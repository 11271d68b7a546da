"""One thread per test process: pytest-xdist already uses the cores."""

import torch

torch.set_num_threads(1)
