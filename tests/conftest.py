"""Settings for the whole suite."""

from collections.abc import Callable, Iterator

import pytest
import torch

# The tests' tensors are small: a second thread gains nothing and, on a busy machine, waits for its core.
torch.set_num_threads(1)


@pytest.fixture
def no_loops() -> Iterator[None]:
    """Operators without a rule for batches raise in ``torch.func.vmap``, where it would warn and loop over the batch."""
    switch: Callable[[bool], None] = torch._C._functorch._set_vmap_fallback_enabled  # type: ignore[attr-defined]
    switch(False)
    yield
    switch(True)
