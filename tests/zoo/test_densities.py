import torch

from assay.zoo.densities import NormalCrossing, Separable


def test_the_potentials_are_what_they_say() -> None:
    inputs = torch.zeros(3, 1)
    crossing, separable = NormalCrossing([2, 4]), Separable([2, 4])
    assert crossing(inputs).tolist() == separable(inputs).tolist() == [0, 0, 0]
    for module in (crossing, separable):
        module.weight.data = torch.tensor([-3.0, 0.5])
    assert crossing(inputs).tolist() == [9 / 16] * 3
    assert separable(inputs).tolist() == [9 + 1 / 16] * 3
