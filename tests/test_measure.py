import torch

from wsgraph.measure import machine, peak_memory


def test_kept_activations_count_and_freed_ones_do_not() -> None:
    x = torch.zeros(1000, requires_grad=True)

    def chain() -> torch.Tensor:
        y = x
        for _ in range(10):
            y = y.tanh()
        return y.sum()

    with torch.no_grad():
        assert peak_memory(chain) == 2 * 4000  # only the input and output of the current operation live
    assert peak_memory(chain) == 10 * 4000 + 4  # tanh keeps its output for the backward pass


def test_storages_from_before_do_not_count() -> None:
    weight = torch.zeros(1000, 10)
    assert peak_memory(lambda: weight.t().reshape(10, 10, 100)[0].view(-1)) == 0
    assert peak_memory(lambda: weight.view(-1)[:5]) == 0
    assert peak_memory(lambda: weight.t() @ weight) == 400


def test_backward_pass_is_seen() -> None:
    x = torch.ones(1000, requires_grad=True)
    forward_only = peak_memory(lambda: x.exp().sum())
    both = peak_memory(lambda: x.exp().sum().backward())
    assert forward_only == 4004
    assert both >= 8004


def test_repeated_measurements_agree() -> None:
    x = torch.randn(100, 100, requires_grad=True)
    assert len({peak_memory(lambda: (x @ x).relu().sum()) for _ in range(3)}) == 1


def test_machine_names_processor_and_versions() -> None:
    described = machine()
    assert described["torch"] == torch.__version__
    assert described["processor"]
    assert described["cores"] >= 1
