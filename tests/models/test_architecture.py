"""What is computed with the weights: the configuration and the tree of modules tell models of equal weights apart."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

import assay
from assay.models.identity import architecture
from assay.models.model import Model

CHANGES: dict[str, dict[str, object]] = {
    "epsilon": {"rms_norm_eps": 1e-2},
    "heads": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
    "activation": {"hidden_act": "gelu"},
    "rotary base": {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
    "attention": {"attn_implementation": "eager"},
}


def same_weights(make: Callable[..., Model], name: str) -> tuple[Model, Model]:
    """Two models of equal weights, one of whose settings differs."""
    one, other = make(), make(**CHANGES[name])
    other.module.load_state_dict(one.module.state_dict())
    assert one.weight_hash() == other.weight_hash()
    return one, other


@pytest.mark.parametrize("name", CHANGES)
def test_the_configuration_tells_models_apart(make_tiny_llama: Callable[..., Model], name: str) -> None:
    one, other = same_weights(make_tiny_llama, name)
    assert architecture(one.module) != architecture(other.module)
    assert architecture(one.module) == architecture(make_tiny_llama().module)


def test_names_paths_and_versions_tell_nothing(make_tiny_llama: Callable[..., Model], tmp_path: Path) -> None:
    made = make_tiny_llama()
    before = architecture(made.module)
    for folder in ("here", "there"):
        made.module.save_pretrained(tmp_path / folder)
        made.tokenizer.save_pretrained(tmp_path / folder)  # type: ignore[union-attr]
        assert architecture(assay.load(tmp_path / folder).module) == before
    made.module.config.transformers_version = "9.9"
    assert architecture(made.module) == before


def test_a_run_is_not_continued_with_another_epsilon(
    make_tiny_llama: Callable[..., Model], tmp_path: Path
) -> None:
    one, other = same_weights(make_tiny_llama, "epsilon")
    first = assay.logit_lens(one, [1, 2, 3], out=tmp_path)
    second = assay.logit_lens(other, [1, 2, 3], out=tmp_path)
    assert not first.dataset["entropy"].equals(second.dataset["entropy"])
    assert second.dataset.identical(assay.logit_lens(other, [1, 2, 3]).dataset)


class Scaled(nn.Module):
    """Holds a function, whose address differs from one process to the next, and a configuration without methods."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.config = type("Config", (), {})()
        self.config.scale, self.config.act = scale, nn.ReLU()
        self.inner = nn.Linear(2, 2)

    def extra_repr(self) -> str:
        return repr(object())


def test_modules_of_ones_own_are_told_by_what_they_show() -> None:
    assert architecture(nn.LayerNorm(4)) == architecture(nn.LayerNorm(4))
    assert architecture(nn.LayerNorm(4)) != architecture(nn.LayerNorm(4, eps=1e-3))
    assert architecture(nn.MultiheadAttention(8, 2)) != architecture(nn.MultiheadAttention(8, 4))
    assert architecture(nn.LayerNorm(4).eval()) == architecture(nn.LayerNorm(4))
    kept = Scaled(1.0), Scaled(1.0)  # both alive, so that their parts have addresses of their own
    assert architecture(kept[0]) == architecture(kept[1])
    assert architecture(kept[0]) != architecture(Scaled(2.0))
