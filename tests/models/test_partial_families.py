"""Partial forwards of every family are its full forwards."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from assay.models.edits import Edit, at
from assay.models.intervention import capture, intervene
from assay.models.model import Model, wrap
from assay.models.partial import Recording, SiteEdit, Variant, partial_forward, record
from families import FAMILIES, VOCABULARY
from reference.naive import naive_patch

PROBABILITY = 1e-6  # float32: the promise, for probabilities of logits known to about 4e-6
ROWS, LENGTH = 2, 11
CORRUPTED = [3, 4]
READ = (-1, 5)


@dataclass(frozen=True, eq=False)
class Case:
    """One family with a recorded run whose embeddings at some positions carry noise."""

    name: str
    model: Model
    ids: Tensor
    corruption: Edit
    recording: Recording
    activations: dict[str, Tensor]

    def draw(self, site: str, *positions: int, head: int | None = None, seed: int = 7) -> SiteEdit:
        """An edit with random values at some positions of a site, or at all."""
        shape = self.activations[site].shape[2 if head is None else 3 :]
        generator = torch.Generator().manual_seed(seed)
        value = torch.randn(ROWS, len(positions) or LENGTH, *shape, generator=generator)
        return SiteEdit(site, value, positions or None, head)

    def full(self, variant: Variant) -> Tensor:
        """Probabilities where they are read, by a full forward of both rows: (row, position, vocabulary)."""
        edits: dict[str, list[Edit]] = {"embed": [self.corruption]}
        for edit in variant:
            value = edit.value if edit.head is None else edit.value.unsqueeze(2)
            edits.setdefault(edit.site, []).append(at(value, positions=edit.positions, heads=edit.head))
        return probabilities(intervene(self.model, self.ids, edits)["logits"][:, list(READ)])


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    model = wrap(FAMILIES[request.param].build())
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=generator)
    activations = capture(model, ids, model.sites())
    noise = torch.randn(ROWS, len(CORRUPTED), activations["embed"].shape[-1], generator=generator)
    corruption = at(lambda embedded: embedded + noise, positions=CORRUPTED)
    recording = record(model, ids, edits={"embed": corruption})
    return Case(request.param, model, ids, corruption, recording, activations)


def probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=PROBABILITY)


def variants(case: Case) -> list[Variant]:
    """Edits at every kind of site, at first, middle and last positions, alone and together."""
    layers = range(case.model.n_layers)
    found: list[Variant] = [
        (case.draw(f"{name}.{layer}", position),)
        for name in ("resid_pre", "resid_post")
        for layer in layers
        for position in (0, 4, LENGTH - 1)
    ]
    found += [(case.draw(f"attn_out.{layer}", -3),) for layer in layers]
    found += [tuple(case.draw(f"mlp_out.{layer}", 6, seed=layer) for layer in layers[1:])]
    found += [(case.draw("z.1", 2, 7, head=3), case.draw("resid_post.0", 5))]
    found += [(case.draw("mlp_out.0"),), (case.draw("attn_in.1", 1), case.draw("mlp_in.2", 9))]
    optional = {"resid_mid.1": None, "mlp_act.1": None, "mlp_pre.1": None, "q.1": 1, "k.1": 0, "v.1": 0}
    found += [
        (case.draw(site, 4, 8, head=head),) for site, head in optional.items() if site in case.activations
    ]
    return found


def test_every_family_runs_in_parts(case: Case) -> None:
    assert case.recording.fallback == ""


def test_partial_forwards_are_full_forwards(case: Case) -> None:
    chosen = variants(case)
    found = partial_forward(case.recording, chosen, probabilities, positions=READ)
    assert found.shape == (len(chosen), ROWS, len(READ), VOCABULARY)
    for variant, row in zip(chosen, found, strict=True):
        close(row, case.full(variant))


def test_the_fallback_to_full_forwards_gives_the_same_numbers(case: Case) -> None:
    chosen = variants(case)[::4]
    slow = partial_forward(replace(case.recording, fallback="asked"), chosen, probabilities, positions=READ)
    close(slow, partial_forward(case.recording, chosen, probabilities, positions=READ))


def test_a_small_row_budget_changes_nothing_but_the_passes(case: Case) -> None:
    chosen = variants(case)[::5]
    at_once = partial_forward(case.recording, chosen, probabilities, positions=READ)
    close(partial_forward(case.recording, chosen, probabilities, positions=READ, max_rows=2 * ROWS), at_once)


def test_a_restored_state_is_the_naive_patch(case: Case) -> None:
    """Against hooks written by hand: clean rows, patched after each layer at two positions."""
    recording = record(case.model, case.ids)
    blocks = FAMILIES[case.name].blocks
    for layer in range(case.model.n_layers):
        for position in (2, LENGTH - 2):
            edit = case.draw(f"resid_post.{layer}", position)
            (found,) = partial_forward(recording, [(edit,)], probabilities)
            expected = naive_patch(case.model.module, case.ids, blocks, layer, position, edit.value[:, 0])
            close(found[:, 0], probabilities(expected[:, -1]))


def test_what_was_not_edited_is_the_recorded_run(case: Case) -> None:
    """A cell after the position that is read leaves it alone."""
    (found,) = partial_forward(
        case.recording, [(case.draw("resid_pre.1", 8),)], probabilities, positions=(5,)
    )
    close(found, case.full(())[:, 1:])
