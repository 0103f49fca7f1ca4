"""The pictures of docs/measurements that show SmolLM2: the settings are those that the pages name."""

from typing import Any

import altair as alt

import assay
from assay.activations import material
from assay.models.model import Model

PROMPT, SUBJECT = "The Eiffel Tower is located in the city of", "Eiffel Tower"
NAMES = (("Mary", "John"), ("Tom", "Sarah"), ("Anna", "Paul"), ("Alice", "Bob"))
"""Who is given a drink, and by whom."""

Picture = alt.TopLevelMixin


def ablation(model: Model) -> Picture:
    """Every head and MLP by its mean, on 20 inputs of 16 tokens."""
    return assay.ablate(model, facts(), length=16, max_inputs=20).chart()


def attribution_patching(model: Model) -> Picture:
    """AtP of one pair, 200 nodes exactly."""
    clean, corrupted, settings = pairs(1)
    return assay.attribution_patch(model, clean, corrupted, exact=200, **settings).chart()


def average_trace(model: Model) -> Picture:
    """48 facts."""
    return assay.average_causal_trace(model, max_facts=48).chart()


def causal_trace(model: Model) -> Picture:
    """One fact."""
    return assay.causal_trace(model, PROMPT, SUBJECT).chart()


def direct_logit_attribution(model: Model) -> Picture:
    """Three prompts."""
    clean, _, settings = pairs(3)
    return assay.direct_logit_attribution(model, clean, **settings).chart()


def edge_attribution(model: Model) -> Picture:
    """EAP-IG of one pair, 200 edges exactly."""
    clean, corrupted, settings = pairs(1)
    result = assay.attribution_patch(model, clean, corrupted, method="eap_ig", exact=200, **settings)
    return result.chart()


def faithfulness(model: Model) -> Picture:
    """Four pairs."""
    clean, corrupted, settings = pairs(4)
    return assay.faithfulness(model, clean, corrupted, **settings).chart()


def layer_horizon(model: Model) -> Picture:
    """8 inputs of 32 tokens."""
    return assay.layer_horizon(model, facts(), length=32, max_inputs=8).chart()


def layer_paths(model: Model) -> Picture:
    """8 inputs of 32 tokens."""
    return assay.layer_paths(model, facts(), length=32, max_inputs=8).chart()


def layer_stages(model: Model) -> Picture:
    """8 inputs of 32 tokens."""
    return assay.layer_stages(model, facts(), length=32, max_inputs=8).chart()


def layer_surgery(model: Model) -> Picture:
    """All operations but repeating, four draws each, on 12 inputs of 32 tokens."""
    operations = ("delete", "swap", "skip", "reverse", "shuffle", "copies", "parallel", "drop", "reorder")
    result = assay.layer_surgery(model, facts(), operations=operations, draws=4, length=32, max_inputs=12)
    return result.chart()


def logit_lens(model: Model) -> Picture:
    """One fact, its answer included."""
    return assay.logit_lens(model, f"{PROMPT} Paris").chart()


def neuron_importance(model: Model) -> Picture:
    """The passage up to the first token of the name's second occurrence; the next is the answer."""
    passage = material.passage()
    answer = model.tokens(passage.answer)[:1]
    return assay.neuron_importance(model, passage.prompt, answer).chart()


def norm_report(model: Model) -> Picture:
    """16 inputs of 32 tokens."""
    return assay.norms.report(model, facts(), length=32, max_inputs=16).chart()


def patching(model: Model) -> Picture:
    """The residual stream at every block and token, three pairs."""
    clean, corrupted, settings = pairs(3)
    return assay.patch(model, clean, corrupted, metrics=("logit_difference",), **settings).chart()


def path_patching(model: Model) -> Picture:
    """Direct paths between the parts that edge attribution ranks first, one pair."""
    clean, corrupted, settings = pairs(1)
    mlps = ("mlp.18", "mlp.20", "mlp.21")
    heads = ("head.17.4", "head.20.0", "head.23.0", "head.23.3", "head.29.0", "head.29.1")
    receivers = (*mlps, "q.23.0", "q.23.3", "k.23.1", "v.23.1", "logits")
    senders = ("mlp.0", *mlps, *heads)
    result = assay.path_patch(model, clean, corrupted, senders=senders, receivers=receivers, **settings)
    return result.chart()


def survey(model: Model) -> Picture:
    """The shipped passage."""
    return assay.survey(model).chart()


def facts() -> str:
    """Every third of the shipped facts, as sentences one after the other."""
    return " ".join(fact.prompt + fact.answer + "." for fact in material.facts()[::3])


def pairs(count: int) -> tuple[list[str], list[str], dict[str, Any]]:
    """Give clean prompts, corrupted ones in which the other name is repeated, and answers and foils.

    Args:
        count: of pairs.
    """
    used = NAMES[:count]
    clean = [f"When {one} and {other} went to the store, {other} gave a drink to" for one, other in used]
    corrupted = [f"When {one} and {other} went to the store, {one} gave a drink to" for one, other in used]
    settings = {"answer": [f" {one}" for one, _ in used], "foil": [f" {other}" for _, other in used]}
    return clean, corrupted, settings
