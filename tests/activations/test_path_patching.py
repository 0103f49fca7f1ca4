"""Path patching against four passes with hooks, on the circuit that is written down, and refused."""

from typing import Any

import numpy as np
import pytest
import torch

import assay
from assay.activations.indifferent import indifferent_copy
from assay.activations.path_patching import PathPatching
from assay.activations.prompt_pairs import Gauge
from assay.errors import BadInput
from assay.models.model import Model, wrap
from assay.runs.measurement import from_settings, settings
from assay.zoo import copier as zoo
from families import FAMILIES
from reference.paths_slow import SlowPaths

NATS = 2e-5  # float32: logits of size 10, summed in another order
CLEAN, CORRUPTED = (5, 17, 23, 42, 8, 61, 9), (5, 17, 50, 42, 12, 61, 9)
ANSWER, FOIL = 7, 12
SENDERS = ("embed", "head.0.1", "mlp.0", "head.1.3", "attention.1", "resid.2", "mlp.2")
RECEIVERS = ("q.1.0", "k.2.1", "v.1.1", "mlp.1", "resid.2", "logits")


@pytest.fixture(scope="module")
def model() -> Model:
    return wrap(FAMILIES["llama"].build())


def run(model: Model, **changed: Any) -> assay.Result:
    given: dict[str, Any] = {"senders": SENDERS, "receivers": RECEIVERS, "baseline": False, **changed}
    return assay.path_patch(model, CLEAN, CORRUPTED, **{"answer": ANSWER, "foil": FOIL, **given})


@pytest.mark.parametrize("middle", ["frozen", "mlps", "recomputed"])
@pytest.mark.parametrize(("direction", "positions"), [("denoise", None), ("noise", (4, -1))])
def test_every_path_is_that_of_four_passes(model: Model, middle: Any, direction: Any, positions: Any) -> None:
    dataset = run(model, middle=middle, direction=direction, positions=positions).dataset
    ids = torch.tensor([CORRUPTED]), torch.tensor([CLEAN])
    base, source = ids if direction == "denoise" else ids[::-1]
    slow = SlowPaths(model.module, base, source, middle, positions or range(7))
    with torch.no_grad():
        plain = model.module(base).logits[0, -1]
    compared = 0.0
    for sender, receiver in (
        ("embed", "q.1.0"), ("embed", "logits"), ("head.0.1", "k.2.1"), ("head.0.1", "v.1.1"), ("mlp.0", "mlp.1"),
        ("head.1.3", "mlp.1"), ("attention.1", "resid.2"), ("resid.2", "k.2.1"), ("resid.2", "logits"),
        ("mlp.2", "logits"),
    ):  # fmt: skip
        logits = slow.logits(sender, receiver.replace("mlp", "read_mlp"))
        wanted = float((logits - plain)[ANSWER] - (logits - plain)[FOIL])
        found = float(dataset["effect"].sel(sender=sender, receiver=receiver))
        assert found == pytest.approx(wanted, abs=4 * NATS)
        compared = max(compared, abs(wanted))
    assert compared > 100 * NATS
    for sender, receiver in (("mlp.2", "k.2.1"), ("head.1.3", "v.1.1"), ("resid.2", "mlp.1")):
        assert np.isnan(dataset["effect"].sel(sender=sender, receiver=receiver))


def test_a_whole_head_reads_together() -> None:
    """Nothing else stands between: the three inputs of a head, patched at once, are the head's own change."""
    model = wrap(FAMILIES["gpt2"].build())
    dataset = run(model, senders=("resid.1",), receivers=("head.1.2", "q.1.2"), middle="recomputed").dataset
    patched = assay.capture(model, CLEAN, ["q.1", "k.1", "v.1"])
    edits = {
        f"{name}.1": assay.at(patched[f"{name}.1"][:, :, [head]], heads=[head])
        for name, head in (("q", 2), ("k", 2), ("v", 2))
    }
    logits = assay.intervene(model, CORRUPTED, edits)["logits"][0, -1]
    base = assay.capture(model, CORRUPTED, "logits")["logits"][0, -1]
    wanted = float((logits - base)[ANSWER] - (logits - base)[FOIL])
    assert float(dataset["effect"].sel(receiver="head.1.2").item()) == pytest.approx(wanted, abs=4 * NATS)


@pytest.mark.parametrize("kind", ["gemma2", "olmo2", "granite"])
def test_heads_before_a_norm_or_a_factor(kind: str) -> None:
    """A head alone from the source run, everything between held: the norm behind it takes its scale from both."""
    other = wrap(FAMILIES[kind].build())
    dataset = run(other, senders=("head.1.2", "attention.1"), receivers=("mlp.1", "logits")).dataset
    held = [site for name in ("z", "mlp_out") for site in other.sites(name)]
    base, source = (assay.capture(other, ids, [*held, "logits", "attn_out.1"]) for ids in (CORRUPTED, CLEAN))
    edits: dict[str, Any] = {site: [base[site]] for site in held}
    for sender, last in (
        ("head.1.2", ("z.1", assay.at(source["z.1"][:, :, [2]], heads=[2]))),
        ("attention.1", ("attn_out.1", source["attn_out.1"])),
    ):
        site, edit = last
        ends = f"resid_post.{other.n_layers - 1}", "resid_mid.1"
        third = assay.intervene(other, CORRUPTED, edits | {site: [*edits.get(site, []), edit]}, capture=ends)
        for receiver, stream in zip(("logits", "mlp.1"), ends, strict=True):
            fourth = {stream: third[stream]}
            if receiver == "mlp.1":
                norm = other.parts.blocks[1].second_norm
                with torch.no_grad():
                    fourth = {"mlp_in.1": third[stream] if norm is None else norm(third[stream])}
            logits = assay.intervene(other, CORRUPTED, fourth)["logits"][0, -1]
            change = logits - base["logits"][0, -1]
            found = float(dataset["effect"].sel(sender=sender, receiver=receiver))
            assert found == pytest.approx(float(change[ANSWER] - change[FOIL]), abs=10 * NATS)
            assert abs(found) > 50 * NATS


def copier() -> tuple[zoo.Pairs, Model]:
    generator = torch.Generator().manual_seed(0)
    module = zoo.copier(generator=generator)
    return zoo.swapped(module.config, 3, generator=generator), wrap(module)


@pytest.mark.parametrize("middle", ["frozen", "recomputed"])
def test_the_copier_s_paths_are_found_and_no_others(middle: Any) -> None:
    pairs, copied = copier()
    result = assay.path_patch(
        copied, pairs.clean, pairs.corrupted, answer=pairs.answers, foil=pairs.foils, middle=middle,
        senders=("embed", "heads", "mlps"), receivers=("v.0.0", "k.1.0", "q.1.0", "v.1.0", "mlp.0", "mlp.1", "logits"),
    )  # fmt: skip
    share = result.dataset["normalised_effect"].to_series().dropna()
    strong = {f"{s}>{r}" for (s, r), value in share.items() if abs(value) > 0.01}
    through = {"embed>k.1.0", "embed>logits", "head.0.0>logits"} if middle == "recomputed" else set()
    assert strong == set(zoo.EDGES) | through
    for edge in strong:
        assert share[tuple(edge.split(">"))] == pytest.approx(1, abs=1e-3)
    idle = [value for (s, _), value in share.items() if s.startswith("mlp") or s.endswith((".1", ".2"))]
    assert idle
    assert not any(idle)
    verdicts = {check.code: check.verdict for check in result.checks}
    assert verdicts == dict.fromkeys(verdicts, "pass")


def test_intervals_are_over_pairs_and_the_baseline_is_of_a_copy() -> None:
    pairs, copied = copier()
    given: dict[str, Any] = {"senders": ("heads",), "receivers": ("k.1.0", "logits"), "seed": 3}
    several = assay.path_patch(
        copied, pairs.clean, pairs.corrupted, answer=pairs.answers, foil=pairs.foils, **given
    ).dataset
    single = [
        assay.path_patch(copied, c, k, answer=a, foil=f, **given).dataset["effect"].values
        for c, k, a, f in zip(pairs.clean, pairs.corrupted, pairs.answers, pairs.foils, strict=True)
    ]
    np.testing.assert_allclose(several["effect"], np.mean(single, 0), rtol=0, atol=NATS)
    np.testing.assert_allclose(
        several["effect_stderr"], np.std(single, 0, ddof=1) / 3**0.5, rtol=0, atol=NATS
    )
    gauge = Gauge(("logit_difference",), pairs.answers[0], pairs.foils[0], torch.zeros(12))
    ids = torch.tensor(pairs.corrupted[:1]), torch.tensor(pairs.clean[:1])
    tokens = indifferent_copy(copied, *ids, gauge, 3 * 1_000_003).tolist()
    null = assay.path_patch(
        copied, tokens, pairs.corrupted[:1], answer=pairs.answers[0], foil=pairs.foils[0], **given
    ).dataset
    np.testing.assert_allclose(several["baseline_effect"], null["effect"], rtol=0, atol=NATS)
    assert int(several["baseline_replaced"]) == (torch.tensor(tokens) != ids[0]).sum()


def test_settings_make_the_same_measurement_again(model: Model) -> None:
    measurement = run(model, middle="mlps", positions=(2,), metric="probability", max_rows=3).measurement
    assert isinstance(measurement, PathPatching)
    assert from_settings("path_patching", settings(measurement)) == measurement
    assert run(model, max_rows=1).dataset["effect"].equals(run(model, max_rows=1).dataset["effect"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"senders": ("head.0.4",)}, "head.0.4 is no sender here"),
        ({"senders": ()}, "none is no sender"),
        ({"senders": "heads", "receivers": "q.0"}, "q.0 is no receiver here"),
        ({"receivers": ("k.0.2",)}, "k.0.2 is no receiver here"),
        ({"receivers": ()}, "none is no receiver"),
        ({"receivers": ("q.1.2", "head.1.2")}, r"head.1.2 shares .* Give q.1.2 .* k.1.1 and v.1.1 are its group's"),
        ({"senders": ("mlp.2",), "receivers": ("q.1.0",)}, "reads before any sender writes"),
        ({"positions": (7,)}, "the prompts have 7"),
        ({"positions": ()}, "the prompts have 7"),
        ({"seed": -1}, "seed=-1: give 0 or more"),
        ({"answer": None, "metric": "probability"}, "probability needs answer="),
    ],
)  # fmt: skip
def test_bad_input_is_refused(model: Model, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        run(model, **changed)


def test_the_chart_shows_paths(model: Model) -> None:
    result = run(model)
    assert len(result.chart().to_dict()["datasets"]["path_patching"]) == len(SENDERS) * len(RECEIVERS)
