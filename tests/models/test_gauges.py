"""The gauges: bytes held, and float64 that stays float64."""

import torch
from torch import nn

from assay.models.gauges import KeepFloat64, PeakMemory, free_memory


def test_peak_memory_counts_storages_once_and_until_they_are_released() -> None:
    with PeakMemory(nn.Identity()) as memory:
        first = torch.zeros(1000)  # 4000 bytes
        second = first.view(10, 100).t()  # the same storage
        assert memory.live == 4000
        third = second + 1  # 4000 more
        assert (memory.live, memory.peak) == (8000, 8000)
        del first, second
        assert (memory.live, memory.peak) == (4000, 8000)
        del third
    assert (memory.live, memory.peak) == (0, 8000)


def test_peak_memory_does_not_count_the_weights() -> None:
    layer = nn.Linear(30, 20)
    with torch.no_grad(), PeakMemory(layer) as memory:
        layer.weight.t()
        assert memory.peak == 0
        layer(torch.ones(5, 30))
    assert memory.peak == 5 * 30 * 4 + 5 * 20 * 4


class Careful(nn.Module):
    """Computes in float32 whatever it is given, in the ways norms and softmaxes do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled = x.to(torch.float32) / 3
        spread = torch.softmax(scaled, -1, dtype=torch.float32) + x.float() / 7
        return spread.to(x.dtype)


def test_a_float64_module_is_kept_from_rounding_to_float32() -> None:
    x = torch.linspace(0, 1, 9, dtype=torch.float64)
    exact = torch.softmax(x / 3, -1) + x / 7
    assert 1e-10 < (Careful()(x) - exact).abs().max() < 1e-6  # what its casts cost: float32's last digit
    with KeepFloat64():
        assert torch.equal(Careful()(x), exact)


def test_free_memory_is_a_share_of_this_machine() -> None:
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50
