"""Settings for the whole suite."""

import torch

# The tests' tensors are small: a second thread gains nothing and, on a busy machine, waits for its core.
torch.set_num_threads(1)
