"""The lens's chart and table say what its dataset says."""

import numpy as np
import pytest
import vl_convert

from assay.errors import BadInput
from assay.report.charts import logit_lens
from report import synthetic


def test_the_table_has_one_row_for_each_cell_with_its_numbers() -> None:
    dataset = synthetic.lens()
    cells = logit_lens.frame(dataset)
    row = cells[(cells["block"] == 1) & (cells["position"] == 4)].iloc[0]
    cell = dataset.isel(layer=2, position=4)
    assert len(cells) == dataset.sizes["layer"] * dataset.sizes["position"]
    assert row["site"] == "resid_post.1"
    assert row["entropy"] == float(cell["entropy"])
    assert row["top_2_probability"] == float(cell["top_probability"][1])
    assert row["answer_place"] == int(cell["target_rank"]) + 1


def test_the_last_position_has_no_answer() -> None:
    cells = logit_lens.frame(synthetic.lens())
    last = cells[cells["position"] == cells["position"].max()]
    assert last["answer_place"].isna().all()
    assert not last["surprising"].any()


def test_the_answer_arrives_where_its_rank_is_first_zero() -> None:
    dataset = synthetic.lens(n_layers=4)
    rank = np.full((5, dataset.sizes["position"]), 3)
    rank[2, 1] = rank[4, 1] = rank[0, 5] = 0  # token 1 arrives at layer 2, leaves, and comes back
    cells = logit_lens.frame(dataset.assign(target_rank=(("layer", "position"), rank)))
    arrived = cells[cells["answer_arrives"]]
    assert {(row.block, row.position) for row in arrived.itertuples()} == {(1, 1), (-1, 5)}


@pytest.mark.parametrize(
    ("site", "block"), [("resid_pre.0", -1), ("resid_post.7", 7), ("attn_out.3", 3), ("mlp_out.12", 12)]
)
def test_a_site_lies_after_its_block(site: str, block: int) -> None:
    assert logit_lens.block_of(site) == block


@pytest.mark.parametrize("colour", ["probability", "entropy", "kl", "rank"])
@pytest.mark.parametrize("orientation", ["layers-down", "layers-right"])
def test_every_quantity_is_drawn_both_ways(colour: logit_lens.Colour, orientation: str) -> None:
    svg = vl_convert.vegalite_to_svg(
        logit_lens.chart(synthetic.lens(), colour=colour, orientation=orientation).to_dict()
    )
    legend = {
        "probability": "probability of the top",
        "entropy": "entropy",
        "kl": "KL(final",
        "rank": "place of the true",
    }
    assert legend[colour] in svg
    assert "Nobody" in svg


def test_an_unknown_colour_or_orientation_is_refused() -> None:
    with pytest.raises(BadInput, match="choose one of probability, entropy, kl, rank"):
        logit_lens.panel(logit_lens.frame(synthetic.lens()), colour="loudness")
    with pytest.raises(BadInput, match="layers-right"):
        logit_lens.panel(logit_lens.frame(synthetic.lens()), orientation="sideways")


def test_findings_name_what_was_learned_and_what_surprises() -> None:
    dataset = synthetic.lens()
    found = {finding.position: finding for finding in logit_lens.findings(dataset)}
    first, later = 3, 14  # "urs" after " D", at both occurrences of the name
    final = dataset["target_log_probability"].values[-1]
    assert final[later] - final[first] > 1
    assert found[later].text.startswith("Learned from the passage")
    assert found[later].block == logit_lens.block_of(
        str(dataset["site"].values[dataset["target_rank"].values[:, later].argmin()])
    )
    surprised = [finding for finding in found.values() if finding.text.startswith("A surprise")]
    assert {finding.position for finding in surprised} == set(np.argsort(final)[:2])


def test_surprisal_belongs_to_the_token_that_surprises() -> None:
    dataset = synthetic.lens()
    [figure] = logit_lens.figures(dataset)
    assert figure.surprisal[0] is None
    assert figure.surprisal[4] == -float(dataset["target_log_probability"][-1, 3])
