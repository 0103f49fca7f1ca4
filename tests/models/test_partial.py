"""Partial forwards: what they refuse, what they save, and what they do where they cannot be had."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from assay.errors import BadInput
from assay.models.edits import at
from assay.models.intervention import capture, intervene
from assay.models.model import Model, wrap
from assay.models.partial import Recording, SiteEdit, Variant, default_rows, partial_forward, record
from families import FAMILIES

PROBABILITY = 1e-6  # float32: the promise
DOUBLE = 1e-12  # float64: logits of size 10 known to 1e-14, summed in another order
ROWS, LENGTH, LAYERS = 2, 9, 3


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> Model:
    return wrap(FAMILIES[request.param].build())


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(3, 101, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def recording(model: Model, ids: Tensor) -> Recording:
    return record(model, ids)


def draw(model: Model, site: str, positions: tuple[int, ...] | None, head: int | None = None) -> SiteEdit:
    """An edit with random values, other ones for each site and place."""
    shape = capture(model, list(range(3, 3 + LENGTH)), [site])[site].shape[2 if head is None else 3 :]
    seed = sum(map(ord, site)) + sum(positions or ()) + (head or 0)
    places = LENGTH if positions is None else len(positions)
    value = torch.randn(ROWS, places, *shape, generator=torch.Generator().manual_seed(seed))
    return SiteEdit(site, value, positions, head)


def full(model: Model, ids: Tensor, variant: Variant, read: tuple[int, ...] = (-1,)) -> Tensor:
    """Probabilities where they are read, by one full forward."""
    edits: dict[str, list] = {}
    for edit in variant:
        value = edit.value if edit.head is None else edit.value.unsqueeze(2)
        edits.setdefault(edit.site, []).append(at(value, positions=edit.positions, heads=edit.head))
    return intervene(model, ids, edits)["logits"][:, list(read)].softmax(-1)


def probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def close(left: Tensor, right: Tensor, tolerance: float = PROBABILITY) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=tolerance)


def grid(model: Model, sites: str = "resid_post", start: int = 0) -> list[Variant]:
    """One variant for each layer and each position from `start` on."""
    return [(draw(model, f"{sites}.{layer}", (p,)),) for p in range(start, LENGTH) for layer in range(LAYERS)]


@pytest.mark.parametrize("site", ["z", "q", "k", "v"])
@pytest.mark.parametrize("positions", [(4,), (1, 6), (-2,), None])
def test_edits_of_one_head(
    model: Model, ids: Tensor, recording: Recording, site: str, positions: tuple[int, ...] | None
) -> None:
    head = 1  # llama's two key heads are shared by four query heads
    variants = [(draw(model, f"{site}.{layer}", positions, head),) for layer in range(LAYERS)]
    found = partial_forward(recording, variants, probabilities)
    for variant, row in zip(variants, found, strict=True):
        close(row, full(model, ids, variant))
    assert (found[0] - full(model, ids, ())).abs().max() > 1e-4  # the edit does something


def test_several_layers_and_positions_in_one_variant(model: Model, ids: Tensor, recording: Recording) -> None:
    variants = [
        (draw(model, "mlp_out.2", (7,)), draw(model, "resid_post.0", (3, 5)), draw(model, "z.1", (4,), 2)),
        (draw(model, "attn_out.0", None), draw(model, "mlp_act.1", (2, -1))),
        (draw(model, "resid_mid.1", (6,)), draw(model, "resid_mid.1", (6, 8))),  # the later one wins at 6
    ]
    found = partial_forward(recording, variants, probabilities, positions=(-1, 4))
    for variant, row in zip(variants, found, strict=True):
        close(row, full(model, ids, variant, (-1, 4)))


def test_variants_come_back_in_the_order_given(model: Model, ids: Tensor, recording: Recording) -> None:
    variants = grid(model, start=6)[::-1]
    found = partial_forward(recording, variants, probabilities)
    for variant, row in zip(variants, found, strict=True):
        close(row, full(model, ids, variant))


def test_positions_before_the_edit_are_the_recorded_run(
    model: Model, ids: Tensor, recording: Recording
) -> None:
    variants: list[Variant] = [(draw(model, f"mlp_out.{layer}", (6,)),) for layer in range(LAYERS)]
    found = partial_forward(recording, variants, lambda logits: logits, positions=range(6))
    alone = recording.readout(recording.resid[-1][:, :6].flatten(0, 1)).view(ROWS, 6, -1)
    close(found, alone.expand_as(found), 0)
    close(alone.softmax(-1), full(model, ids, (), tuple(range(6))))


@pytest.mark.parametrize("max_rows", [ROWS, 2 * ROWS + 1, 5 * ROWS])
def test_a_row_budget_does_not_change_the_numbers(model: Model, recording: Recording, max_rows: int) -> None:
    variants = grid(model, start=3)
    at_once = partial_forward(recording, variants, probabilities)
    close(partial_forward(recording, variants, probabilities, max_rows=max_rows), at_once)


def test_a_row_budget_is_kept(model: Model, recording: Recording) -> None:
    seen = []
    down = recording.blocks.model.parts.blocks[-1].mlp_down
    handle = down.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    partial_forward(recording, grid(model), probabilities, max_rows=2 * ROWS + 1)
    handle.remove()
    assert max(seen) == 2 * ROWS


def test_the_default_budget_holds_a_variant_and_shrinks_with_memory(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    plenty = default_rows(recording)
    monkeypatch.setattr("assay.models.partial.free_memory", lambda _: 2**21)
    assert ROWS < default_rows(recording) < plenty
    monkeypatch.setattr("assay.models.partial.free_memory", lambda _: 0)
    assert default_rows(recording) == ROWS


def test_double_precision_agrees_to_its_own_rounding(ids: Tensor) -> None:
    for name in ("llama", "gpt2"):
        model = wrap(FAMILIES[name].build().double())
        recording = record(model, ids)
        variants = [*grid(model), *grid(model, "attn_out", 4)]
        found = partial_forward(recording, variants, probabilities)
        for variant, row in zip(variants, found, strict=True):
            close(row, full(model, ids, variant), DOUBLE)


def block_tokens(model: Model, run: Callable[[], object]) -> int:
    """How many tokens pass through MLPs while something runs: rows x positions, summed over blocks."""
    counted = []
    handles = [
        block.mlp_down.register_forward_hook(lambda _, args, __: counted.append(args[0].shape[:-1].numel()))
        for block in model.parts.blocks
    ]
    run()
    for handle in handles:
        handle.remove()
    return sum(counted)


@pytest.mark.parametrize("start", [0, 5])
def test_only_what_an_edit_can_change_is_computed(model: Model, ids: Tensor, start: int) -> None:
    recording, variants = record(model, ids), grid(model, start=start)
    partial = block_tokens(model, lambda: partial_forward(recording, variants, probabilities))
    naive = block_tokens(model, lambda: [full(model, ids, variant) for variant in variants])
    # restoring after block l leaves L-1-l blocks to run, on the T-t positions from t on
    triangle = (LENGTH - start) * (LENGTH - start + 1) // 2
    assert partial == ROWS * triangle * LAYERS * (LAYERS - 1) // 2
    assert naive == ROWS * (LENGTH - start) * LAYERS * LENGTH * LAYERS


def without_cache() -> Model:
    """A LLaMA whose forward ignores the cache it is given."""
    module = FAMILIES["llama"].build()
    own = module.forward
    module.forward = lambda input_ids, **_: own(input_ids=input_ids)
    return wrap(module)


def looking_around() -> Model:
    """A LLaMA whose block sees the mean over positions: its past is not in the keys and values alone."""
    module = FAMILIES["llama"].build()
    module.model.layers[0].register_forward_hook(lambda _, __, out: out + out.mean(1, keepdim=True))
    return wrap(module)


def test_an_error_is_seen_beside_a_position_of_huge_norm(ids: Tensor) -> None:
    module = FAMILIES["llama"].build()
    module.model.layers[0].register_forward_hook(lambda _, __, out: out + 1e-2 * out.mean(1, keepdim=True))
    edit = torch.zeros(LENGTH, 1)
    edit[LENGTH // 2] = 1e6  # among the positions that the self-test continues
    recording = record(wrap(module), ids[:, :LENGTH], edits={"embed": lambda embed: embed * (1 + edit)})
    assert "continuing a prefix changes" in recording.fallback


@pytest.mark.parametrize(
    ("make", "reason"),
    [(without_cache, "0 of 3 blocks keep keys and values"), (looking_around, "continuing a prefix changes")],
)
def test_blocks_that_cannot_continue_a_prefix_are_served_by_full_forwards(
    ids: Tensor, make: Callable[[], Model], reason: str
) -> None:
    model = make()
    recording = record(model, ids)
    assert reason in recording.fallback
    variants = [*grid(model, start=4), (draw(model, "z.1", (3, 5), 2), draw(model, "mlp_out.2", None))]
    for max_rows in (None, 3 * ROWS):
        found = partial_forward(recording, variants, probabilities, positions=(-1, 2), max_rows=max_rows)
        for variant, row in zip(variants, found, strict=True):
            close(row, full(model, ids, variant, (-1, 2)))


def test_full_forwards_start_from_the_recorded_embedding(model: Model, ids: Tensor) -> None:
    """Also where that was edited, and for some of the rows."""
    noise = torch.randn(ROWS, 2, model.d_model, generator=torch.Generator().manual_seed(4))
    corruption = at(lambda embedded: embedded + noise, positions=[3, 4])
    both = record(model, ids, edits={"embed": corruption})
    edit = draw(model, "resid_post.1", (5,))
    for kept in (both, replace(both, fallback="asked for")):
        (found,) = partial_forward(kept, [(edit,)], probabilities)
        edits = {"embed": corruption, edit.site: at(edit.value, positions=5)}
        close(found, intervene(model, ids, edits)["logits"][:, -1:].softmax(-1))
        (second,) = partial_forward(kept.rows(1, 2), [(replace(edit, value=edit.value[1:]),)], probabilities)
        close(second, found[1:])


def test_further_sites_are_kept_on_request(model: Model, ids: Tensor) -> None:
    recording = record(model, ids, sites=["mlp_out.1", "blocks.0.hook_attn_out"])
    expected = capture(model, ids, ["mlp_out.1", "attn_out.0"])
    assert list(recording.sites) == ["mlp_out.1", "blocks.0.hook_attn_out"]
    assert torch.equal(recording.sites["mlp_out.1"], expected["mlp_out.1"])
    assert torch.equal(recording.rows(1, 2).sites["blocks.0.hook_attn_out"], expected["attn_out.0"][1:])


def test_a_variant_leaves_the_recording_as_it_was(model: Model, ids: Tensor) -> None:
    recording = record(model, ids)
    before = [part.clone() for part in (*recording.resid, *(t for pair in recording.cache for t in pair))]
    variants = [(draw(model, f"{site}.0", (0,)),) for site in ("resid_pre", "resid_mid", "mlp_out")]
    partial_forward(recording, variants, probabilities, max_rows=ROWS)
    after = [*recording.resid, *(t for pair in recording.cache for t in pair)]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def edit_of(model: Model, site: str, **changed: object) -> Variant:
    return (replace(SiteEdit(site, torch.zeros(model.d_model), (1,)), **changed),)


@pytest.mark.parametrize(
    ("site", "changed", "message"),
    [
        ("embed", {}, "variant 0 edits 'embed'; partial forwards edit residual and module sites of blocks"),
        ("pattern.1", {}, "variant 0 edits 'pattern.1'"),
        ("resid_post.3", {}, "the model has layers 0 to 2"),
        ("resid_post.1", {"positions": (1, 9)}, r"edits positions \(1, 9\); the prompt has 9"),
        ("resid_post.1", {"positions": (-10,)}, r"edits positions \(-10,\); the prompt has 9"),
        ("resid_post.1", {"positions": ()}, "no positions"),
        ("mlp_out.1", {"head": 0}, "gives a head for 'mlp_out.1', which has none"),
        ("z.1", {"head": 4, "value": torch.zeros(8)}, "head 4 of 'z.1'; there are 4, numbered 0 to 3"),
        ("ln1_scale.1", {}, "can only be read"),
        ("resid_post.1", {"value": torch.zeros(5)}, r"value of shape \(5,\) that does not fit"),
    ],
)
def test_a_wrong_edit_is_refused(
    model: Model, recording: Recording, site: str, changed: dict, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        partial_forward(recording, [edit_of(model, site, **changed)], probabilities)


def test_other_wrong_arguments_are_refused(model: Model, ids: Tensor, recording: Recording) -> None:
    good = [edit_of(model, "resid_post.1")]
    with pytest.raises(BadInput, match="variant 1 has no edits"):
        partial_forward(recording, [*good, ()], probabilities)
    with pytest.raises(BadInput, match="no variants"):
        partial_forward(recording, [], probabilities)
    with pytest.raises(BadInput, match="max_rows=1 does not hold one variant of the 2 recorded rows"):
        partial_forward(recording, good, probabilities, max_rows=1)
    with pytest.raises(BadInput, match=r"positions \(9,\) are read; the prompt has 9"):
        partial_forward(recording, good, probabilities, positions=(9,))
    with pytest.raises(BadInput, match="edited at 'embed' only"):
        record(model, ids, edits={"resid_pre.1": 0.0})
    with pytest.raises(BadInput, match="different numbers of tokens"):
        record(model, [[3, 4, 5], [6, 7]])


def too_large(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def test_running_out_of_memory_says_what_to_set(model: Model, recording: Recording) -> None:
    variants = grid(model, start=8)
    handle = recording.blocks.model.parts.blocks[-1].mlp_down.register_forward_pre_hook(too_large)
    with pytest.raises(
        MemoryError, match="a pass of 6 rows did not fit in memory; set max_rows to 3 or less"
    ):
        partial_forward(recording, variants, probabilities)
    with pytest.raises(MemoryError, match="one variant of 2 recorded rows: record fewer"):
        partial_forward(recording, variants[:1], probabilities)
    handle.remove()
    with pytest.raises(MemoryError, match="set max_rows to 3 or less"):  # as a processor's allocator says it
        partial_forward(recording, variants, lambda _: torch.empty(2**58))
    with pytest.raises(RuntimeError, match="on purpose"):
        partial_forward(recording, variants, lambda _: failing())
    partial_forward(recording, variants, probabilities)  # nothing is left behind


def failing() -> Tensor:
    raise RuntimeError("on purpose")
