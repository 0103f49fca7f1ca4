"""What one pass may read and replace at once, on decoders and on plain modules; families are tested beside."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from assay.errors import BadInput
from assay.models.edits import at
from assay.models.intervention import capture, intervene
from assay.models.model import Model, wrap
from families import FAMILIES

EXACT = 0
SUM = 2e-5  # float32: logits of size 10, another order of summation
IDS = [[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> Model:
    return wrap(FAMILIES[request.param].build())


def close(left: Tensor, right: Tensor, tolerance: float = SUM) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=tolerance)


def test_one_site_may_be_asked_by_its_name_alone(model: Model) -> None:
    assert list(capture(model, IDS, "resid_post.1")) == ["resid_post.1"]


def test_a_capture_is_a_view_of_what_the_module_computed(model: Model) -> None:
    seen: list[Tensor] = []
    handle = model.parts.blocks[1].module.register_forward_hook(lambda _, __, out: seen.append(out))
    captured = capture(model, IDS, ["resid_post.1", "z.1", "v.1"])
    handle.remove()
    value = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert captured["resid_post.1"].data_ptr() == value.data_ptr()
    assert captured["z.1"]._base is not None or captured["z.1"].is_contiguous()
    assert not captured["resid_post.1"].requires_grad


def test_captures_hold_no_graph_unless_asked(model: Model) -> None:
    assert capture(model, IDS, ["logits"])["logits"].grad_fn is None
    assert capture(model, IDS, ["logits"], grad=True)["logits"].grad_fn is not None


def test_rows_of_a_batch_are_edited_apart(model: Model) -> None:
    both = intervene(model, IDS, {"resid_post.0": at(0.0, rows=1, positions=2)})["logits"]
    close(both[0], capture(model, IDS[:1], ["logits"])["logits"][0])
    close(both[1], intervene(model, IDS[1:], {"resid_post.0": at(0.0, positions=2)})["logits"][0])


def test_an_edited_site_is_captured_after_its_edit(model: Model) -> None:
    for site in ("resid_post.1", "z.0", "mlp_act.1", "pattern.1", "logits", "resid_mid.0"):
        captured = intervene(model, IDS, {site: at(0.25, positions=3)}, capture=[site, "logits"])
        part = captured[site].select(2 if site == "pattern.1" else 1, 3)
        assert torch.equal(part, torch.full_like(part, 0.25)), site
        changed = (captured["logits"] - capture(model, IDS, ["logits"])["logits"]).abs()
        assert changed[:, 3:].max() > 1e-3, site
        assert changed[:, :3].max() <= SUM, site


def test_leaving_a_block_is_entering_the_next(model: Model) -> None:
    value = torch.randn(2, 5, model.d_model, generator=torch.Generator().manual_seed(0))
    left, entered = (
        intervene(model, IDS, {site: value})["logits"] for site in ("resid_post.0", "resid_pre.1")
    )
    assert torch.equal(left, entered)


def test_aliases_may_be_edited(model: Model) -> None:
    edit = at(0.0, positions=1, heads=2)
    alias = intervene(model, IDS, {"blocks.1.attn.hook_z": edit})["logits"]
    assert torch.equal(alias, intervene(model, IDS, {"z.1": edit})["logits"])


def test_two_names_of_one_place_are_both_served(model: Model) -> None:
    captured = intervene(
        model, IDS, {"resid_pre.1": lambda x: x + 1}, capture=["resid_pre.1", "blocks.1.hook_resid_pre"]
    )
    assert torch.equal(*captured.values())


def test_neurons_are_edited_by_number(model: Model) -> None:
    captured = intervene(
        model, IDS, {"mlp_act.1": at(5.0, neurons=[3, 7], positions=-1)}, capture=["mlp_act.1"]
    )
    before = capture(model, IDS, ["mlp_act.1"])["mlp_act.1"]
    changed = (captured["mlp_act.1"] != before).nonzero()[:, 1:].unique(dim=0).tolist()
    assert changed == [[4, 3], [4, 7]]


def test_an_interchange_of_two_runs_is_the_other_run(model: Model) -> None:
    """Everything that enters the last block from one prompt, put into another: its logits."""
    source = capture(model, IDS[:1], ["resid_pre.2"])["resid_pre.2"].clone()
    swapped = intervene(model, IDS[1:], {"resid_pre.2": source})["logits"]
    assert torch.equal(swapped, capture(model, IDS[:1], ["logits"])["logits"])


def test_module_paths_reach_what_has_no_name(model: Model) -> None:
    path = next(
        name for name, module in model.module.named_modules() if name.endswith(("mlp.up_proj", "mlp.c_fc"))
    )
    captured = capture(model, IDS, [path, f"{path}:in", "mlp_in.0"])
    assert torch.equal(captured[f"{path}:in"], captured["mlp_in.0"])
    edited = intervene(model, IDS, {path: 0.0}, capture=[path])
    assert not edited[path].any()


class Rectangle(nn.Module):
    """A module that is no language model, of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)
        self.spare = nn.Linear(3, 2)

    def forward(self, x: Tensor, shift: float = 0.0) -> Tensor:
        return self.second(torch.relu(self.first(x)) + shift)


@pytest.fixture
def plain() -> Model:
    generator, module = torch.Generator().manual_seed(3), Rectangle()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
    return wrap(module)


def test_a_plain_module_is_read_by_its_paths(plain: Model) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected, hidden = plain.module(x), plain.module.first(x)
    captured = capture(plain, x, ["first", "second:in", "second"])
    assert torch.equal(captured["first"], hidden)
    assert torch.equal(captured["second:in"], hidden.relu())
    assert torch.equal(captured["second"], expected)
    for inputs in ({"x": x, "shift": 1.0}, (x, 1.0)):
        assert torch.equal(capture(plain, inputs, ["second:in"])["second:in"], hidden.relu() + 1)


def test_a_plain_module_is_edited_by_its_paths(plain: Model) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(4))
    captured = intervene(plain, x, {"first": at(9.0, rows=2, neurons=1)}, capture=["second:in", "second"])
    with torch.no_grad():
        hidden = plain.module.first(x).relu()
        hidden[2, 1] = 9
        assert torch.equal(captured["second:in"], hidden)
        close(captured["second"], plain.module.second(hidden))


def test_a_place_the_pass_does_not_reach_is_told(plain: Model) -> None:
    x = torch.zeros(1, 4)
    with pytest.raises(BadInput, match=r"\['spare'\] were not reached by this forward pass"):
        capture(plain, x, ["spare"])
    with pytest.raises(BadInput, match=r"\['spare'\] were not reached by this forward pass"):
        intervene(plain, x, {"spare": 0.0}, capture=["second"])


def test_a_pattern_that_a_kernel_never_shows_is_told() -> None:
    """An attention of one's own that goes through neither of the two calls that are watched."""

    def own(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **_: Any
    ) -> tuple[Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / query.shape[-1] ** 0.5
        weights = scores.tril().exp().tril()
        return (weights / weights.sum(-1, keepdim=True) @ value).transpose(1, 2), None

    AttentionInterface.register("own", own)
    model = wrap(FAMILIES["llama"].build(attention="own"))
    assert capture(model, IDS, ["logits"])["logits"].isfinite().all()
    with pytest.raises(BadInput, match=r"\['pattern.1'\] were not reached"):
        capture(model, IDS, ["pattern.1"])
    with pytest.raises(BadInput, match=r"\['pattern.1'\] were not reached"):
        intervene(model, IDS, {"pattern.1": 0.0})


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("resid_post.9", "site 'resid_post.9': the model has layers 0 to 2"),
        ("residual.1", "unknown site 'residual.1'. Sites are embed, final_norm_scale"),
        ("blocks.0.hook_nothing", "unknown site"),
        ("model.layers.0.nothing", "unknown site"),
    ],
)
def test_an_unknown_site_is_refused(model: Model, site: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        capture(model, IDS, [site])
    with pytest.raises(BadInput, match=message):
        intervene(model, IDS, {site: 0.0})


def test_wrong_edits_are_refused_and_leave_no_trace(model: Model) -> None:
    before = capture(model, IDS, ["logits"])["logits"]
    with pytest.raises(BadInput, match="can only be read"):
        intervene(model, IDS, {"ln1_scale.1": 1.0})
    with pytest.raises(BadInput, match="does not broadcast"):
        intervene(model, IDS, {"mlp_out.1": torch.zeros(7)})
    with pytest.raises(BadInput, match="has no heads"):
        intervene(model, IDS, {"resid_post.1": at(0.0, heads=1)})
    with pytest.raises(BadInput, match=r"positions \[5\]"):
        intervene(model, IDS, {"pattern.1": at(0.0, positions=5)})
    assert torch.equal(capture(model, IDS, ["logits"])["logits"], before)


def test_unknown_paths_of_a_plain_module_name_some_that_are_there(plain: Model) -> None:
    with pytest.raises(BadInput, match="here sites are module paths .*: first, second, spare"):
        capture(plain, torch.zeros(1, 4), ["third"])
