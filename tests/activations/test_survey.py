"""The survey: its three parts are the three measurements, and a recurring name is found and cut as it is said."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import assay
from assay.activations.material import passage
from assay.activations.survey import EXACT, Survey, part, recurrence, recurring_name
from assay.errors import BadInput
from assay.models.model import Model, wrap
from assay.report.charts.survey import part as part_of_chart
from assay.runs.measurement import from_settings, settings
from assay.runs.perform import perform
from assay.runs.result import Result
from families import FAMILIES

TEXT = "When Mr Tarly came, Harry said that Mr Tarly had seen Mary."
SETTINGS: dict[str, Any] = {
    "top_k": 3,
    "noise_samples": 2,
    "kinds": ("state", "attn"),
    "window": 2,
    "seed": 5,
}
"""None of them the default."""


@pytest.fixture(scope="module")
def model(make_tiny_llama: Callable[..., Model]) -> Model:
    return make_tiny_llama()


@pytest.fixture(scope="module")
def surveyed(model: Model) -> Result:
    return assay.survey(model, TEXT, "Tarly", **SETTINGS)


@pytest.fixture(scope="module")
def alone(model: Model) -> dict[str, Result]:
    """The three, asked for one by one."""
    cut = recurrence(model, TEXT, "Tarly")
    prompt, answer = cut.tokens[: cut.length], cut.answer
    return {
        "lens": assay.logit_lens(model, cut.tokens, top_k=3, seed=5),
        "trace": assay.causal_trace(
            model, prompt, cut.subject, answer, noise_samples=2, kinds=("state", "attn"), window=2, seed=5
        ),
        "neurons": assay.neuron_importance(model, prompt, answer, top_k=3, exact=EXACT, seed=5),
    }


@pytest.mark.parametrize("name", ["lens", "trace", "neurons"])
def test_each_part_is_the_measurement_alone(surveyed: Result, alone: dict[str, Result], name: str) -> None:
    xr.testing.assert_identical(part(surveyed.dataset, name), alone[name].dataset)


def test_every_name_has_its_part_s_prefix(surveyed: Result) -> None:
    names = {*surveyed.dataset.variables, *surveyed.dataset.dims}
    assert {str(name).partition(".")[0] for name in names} == {"lens", "trace", "neurons"}
    assert surveyed.dataset.attrs["model"] == "LlamaForCausalLM"
    assert surveyed.dataset.attrs["name"] == "Tarly"


def test_the_chart_takes_the_same_parts(surveyed: Result) -> None:
    for name in ("lens", "trace", "neurons"):
        taken = part_of_chart(surveyed.dataset, name)
        xr.testing.assert_identical(taken, part(surveyed.dataset, name))


def test_a_part_that_is_not_there_is_refused(surveyed: Result) -> None:
    with pytest.raises(BadInput, match="lens, trace, neurons"):
        part(surveyed.dataset, "tracing")


def test_checks_are_the_parts_and_say_whose(surveyed: Result, alone: dict[str, Result]) -> None:
    own = [check for check in surveyed.checks if not check.code.startswith("A0")]
    expected = [
        (check.code, check.verdict, f"{name.capitalize()}: {check.message}")
        for name, result in alone.items()
        for check in result.checks
        if not check.code.startswith("A0")
    ]
    assert [(check.code, check.verdict, check.message) for check in own] == expected
    assert {check.code[0] for check in own} == {"L", "T", "N"}


def test_a_run_is_kept_resumed_and_read(model: Model, surveyed: Result, tmp_path: Path) -> None:
    again = from_settings("survey", settings(surveyed.measurement))
    assert again == surveyed.measurement
    kept = perform(again, model, out=tmp_path)
    assert kept.path is not None
    assert (kept.path / "units" / "lens.positions-00000.safetensors").is_file()
    xr.testing.assert_identical(Result.load(kept.path).dataset, surveyed.dataset)


def test_costs_are_in_one_unit(model: Model) -> None:
    """A row of the lens costs one unembedding, a token of the trace on average half of the blocks."""
    cut = recurrence(model, TEXT, "Tarly")
    measurement = Survey(
        tokens=cut.tokens, length=cut.length, subject=cut.subject, answer=cut.answer, window=3
    )
    block = sum(p.numel() for p in model.parts.blocks[0].module.parameters())
    units = {unit.name: unit.cost for unit in measurement.plan(model)}
    own = {
        f"{name}.{unit.name}": unit.cost for name, m in measurement.parts.items() for unit in m.plan(model)
    }
    ratio = {name: units[name] / own[name] for name in units}
    assert ratio["lens.positions-00000"] == pytest.approx(model.parts.vocabulary * model.d_model / block)
    assert ratio["trace.untrained"] == pytest.approx(model.n_layers / 2)
    assert ratio["neurons.untrained"] == pytest.approx(1)
    assert measurement.memory(model) == max(m.memory(model) or 0 for m in measurement.parts.values())


def test_a_name_of_several_tokens_is_cut_after_its_first(model: Model) -> None:
    cut = recurrence(model, TEXT, "Tarly")
    texts = model.token_texts(cut.tokens)
    assert "".join(texts) == TEXT
    assert texts[cut.length - 1].strip() and "Tarly".startswith(texts[cut.length - 1].strip())
    assert cut.answer == cut.tokens[cut.length : cut.length + 1]  # the second token of the name
    assert "".join(texts[p] for p in cut.subject).strip() == "Tarly"
    assert "".join(texts[: min(cut.subject)]).strip() == "When Mr"


def test_a_name_of_one_token_is_cut_before_it(model: Model) -> None:
    cut = recurrence(model, "Mrs Dursley said that Mr Dursley had seen Harry.", "Dursley")
    assert model.token_texts(cut.tokens[: cut.length]) == ["Mrs", " Dursley", " said", " that", " Mr"]
    assert model.token_texts(cut.answer) == [" Dursley"]
    assert cut.subject == (1,)


def test_every_earlier_occurrence_is_corrupted(model: Model) -> None:
    cut = recurrence(model, "Mr Dursley and Mrs Dursley saw Harry Dursley.", "Dursley")
    assert [model.token_texts(cut.tokens)[p] for p in cut.subject] == [" Dursley", " Dursley"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (TEXT, "Tarly"),
        (
            "The rain fell; the old Harry and Harry",
            "Harry",
        ),  # "The" is no name: it stands there in lower case too
        ("Ann saw Annual Annual", "Annual"),  # whole words: Ann occurs once
    ],
)
def test_a_recurring_name_is_found(model: Model, text: str, name: str) -> None:
    assert recurring_name(model, text) == name


def test_the_name_found_is_the_one_surveyed(model: Model) -> None:
    result = assay.survey(model, TEXT, noise_samples=2, kinds=("state",))
    assert result.dataset.attrs["name"] == "Tarly"
    assert result.dataset.attrs["trace.corruption"].startswith("noise")


@pytest.mark.smollm2
def test_the_shipped_passage_is_corrupted_by_other_names_where_they_fit(
    make_tiny_llama: Callable[..., Model], smollm2: Model
) -> None:
    """SmolLM2's tokenizer gives all of them four tokens; on a tiny model with it, the survey takes seconds."""
    tokenizer = smollm2.tokenizer
    assert tokenizer is not None
    model = wrap(make_tiny_llama(vocab_size=len(tokenizer)).module, tokenizer)
    result = assay.survey(model, noise_samples=3, kinds=("state",))
    measurement = result.measurement
    assert isinstance(measurement, Survey)
    shipped = passage()
    prompt = model.tokens(shipped.prompt)
    assert measurement.tokens[: measurement.length] == prompt
    (answer,) = model.token_texts(measurement.answer)
    assert answer and shipped.answer.startswith(answer)
    expected = [
        model.tokens(shipped.prompt.replace(shipped.name, other)) for other in shipped.replacements[:3]
    ]
    assert list(measurement.replacements) == expected
    assert part(result.dataset, "trace").sizes["sample"] == 3
    assert result.dataset.attrs["trace.corruption"] == "replacement"


def test_a_tokenizer_that_the_other_names_do_not_fit_gets_noise(model: Model) -> None:
    """All of them or none: samples of two kinds of corruption would not be samples of one thing."""
    lengths = [len(model.tokens(f" {name}")) for name in (passage().name, *passage().replacements)]
    assert lengths[1] == lengths[0]
    assert len(set(lengths)) > 1
    dataset = assay.survey(model, noise_samples=5, kinds=("state",)).dataset
    assert dataset.attrs["trace.corruption"].startswith("noise")
    assert part(dataset, "trace").sizes["sample"] == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((TEXT, "Harry"), "occurs once"),
        ((TEXT, "Dursley"), "not in the prompt"),
        (("nothing has a name here",), "--name"),
        ((None, "Tarly"), "without a text"),
        (("",), "no capitalised word"),
    ],
)
def test_texts_without_a_recurring_name_are_refused(
    model: Model, given: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        assay.survey(model, *given)


@pytest.mark.parametrize(
    ("setting", "value"), [("top_k", 0), ("kinds", ()), ("window", 9), ("noise_samples", 0)]
)
def test_bad_settings_are_refused(model: Model, setting: str, value: Any) -> None:
    with pytest.raises(BadInput, match=setting):
        assay.survey(model, TEXT, "Tarly", **{setting: value})


def test_a_model_without_visible_neurons_is_refused(model: Model) -> None:
    family = FAMILIES["mixtral"]
    experts = wrap(
        replace(family, settings={**family.settings, "vocab_size": model.parts.vocabulary}).build(),
        model.tokenizer,
    )
    with pytest.raises(BadInput, match="mixture of experts"):
        assay.survey(experts, TEXT, "Tarly")


@pytest.mark.slow
@pytest.mark.smollm2
def test_smollm2_copies_the_name_from_where_it_stood(smollm2: Model) -> None:
    """What the demonstration shows: the name's earlier occurrence stands out in trace and neurons, and in no twin."""
    result = assay.survey(smollm2, noise_samples=2, kinds=("state",))
    assert [check for check in result.checks if check.verdict != "pass"] == []
    trace, neurons = part(result.dataset, "trace"), part(result.dataset, "neurons")
    subject = trace["is_subject"].values
    early = trace["indirect_effect"].sel(kind="state").values[:, :-1]
    assert subject[early.max(0).argmax()]
    assert early.max() > 0.9  # one state brings back almost all of it
    assert subject[neurons["importance"].values.max(0).argmax()]
    assert not subject[neurons["baseline_importance"].values.max(0).argmax()]
