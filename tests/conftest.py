"""Settings for the whole suite."""

import torch

# The tests' tensors are small: a second thread gains nothing and, on a busy machine, waits for its core.
torch.set_num_threads(1)

import torch

# Workers of loaders are forked, and threads that computed before a fork are waited for in vain after it.
torch.set_num_threads(1)
