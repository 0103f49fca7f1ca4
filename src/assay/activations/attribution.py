"""The verb of attribution patching: nodes or edges, by one of eight methods."""

from collections.abc import Sequence
from typing import Any, Unpack, get_args

from assay.activations.attribution_patching import AttributionPatching
from assay.activations.circuits.edge_scores import EdgeMethod, Quadrature
from assay.activations.circuits.node_scores import NodeMethod
from assay.activations.edge_attribution import EdgeAttribution
from assay.activations.paired import paired
from assay.activations.patching import canonical_site
from assay.activations.prompt_pairs import Direction, Metric, Prompts, best_metric, words_of
from assay.errors import BadInput
from assay.models.model import Model
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result


def attribution_patch(  # noqa: PLR0913 (settings of a verb)
    model: Model,
    clean: Prompts,
    corrupted: Prompts,
    *,
    answer: str | int | Sequence[str] | Sequence[int] | None = None,
    foil: str | int | Sequence[str] | Sequence[int] | None = None,
    method: NodeMethod | EdgeMethod = "atp",
    sites: Sequence[str] = ("resid_post", "q", "k", "v", "z", "mlp_out"),
    steps: int = 48,
    quadrature: Quadrature = "adaptive",
    direction: Direction = "denoise",
    metric: Metric | None = None,
    exact: int = 64,
    baseline: bool = True,
    seed: int = 0,
    max_rows: int | None = None,
    **run: Unpack[RunOptions],
) -> Result:
    """Tell what patching each node would do, all at once and to first order, beside exact effects of some.

    Args:
        model: a decoder from ``load`` or ``wrap``.
        clean: a prompt, or several, as text or token ids.
        corrupted: as many prompts of the same number of tokens.
        answer: the clean prompt's answer, a single token with its leading space; one for all pairs or one each.
        foil: what the logit difference is taken against, for example the corrupted prompt's answer.
        method: ``atp``; with the ``qk_fix``, which puts queries and keys through the exact softmax; with ``grad_drop``,
            which averages over passes whose slopes leave one layer out; ``atp_star`` for both. ``eap``, ``eap_ig``,
            ``eap_qk_fix`` and ``eap_star`` attribute edges instead of nodes: by one slope, by slopes between the
            prompts' embeddings, with the QK fix, and with GradDrop too.
        sites: whose nodes are attributed, where it is nodes: ``resid_pre``, ``resid_post``, ``attn_out``, ``mlp_out``,
            ``z``, ``q``, ``k``, ``v``, ``mlp_act`` (every neuron) and others.
        steps: slopes that ``eap_ig`` takes on the way; at most, where ``adaptive``.
        quadrature: where it takes them: ``adaptive``, until they add up to 1%; ``gauss``; or the usual ``endpoint``.
        direction: ``denoise`` puts clean values into the corrupted run, ``noise`` corrupted ones into the clean run.
        metric: ``logit_difference``, ``log_probability``, ``probability`` or ``kl_from_clean`` (nats); by default the
            first of them that the answer and the foil allow.
        exact: nodes or edges that are patched exactly too: half those ranked first, half random; 0 for none.
        baseline: also attribute between the first patched prompt and a copy with other tokens where they do not matter,
            so that nothing is to be found.
        seed: of the random nodes or edges, the copy's tokens and the bootstrap.
        max_rows: most rows in one exact pass; what memory allows by default.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds, for each site, ``attribution_z[layer, position, head]`` (or ``kv_head``, or
        ``neuron``, or neither) with ``_stderr``, ``_low`` and ``_high`` over pairs, and ``baseline_attribution_z``;
        ``node_attribution``, ``node_effect`` and ``node_missed`` of the nodes patched exactly; ``rank_correlation``
        and ``missed_share`` with their intervals; ``metric_base``, ``metric_source`` and ``total_effect``. For edges
        ``score[sender, receiver]`` in the place of attributions, ``edge_score``, ``edge_effect``, ``edge_missed``, and
        ``quadrature_error``.

    Raises:
        BadInput: an unknown method, prompts of different length, a metric that needs an answer and has none, one
            without a slope, or a site that this model does not have.
    """
    known = (*get_args(NodeMethod), *get_args(EdgeMethod))
    if method not in known:
        raise BadInput(f"method={method!r}: choose from {', '.join(known)}")
    given = paired(model, clean, corrupted, answer, foil)
    common: dict[str, Any] = {
        **given,
        "method": method,
        "direction": direction,
        "metric": metric or best_metric(given["answers"], given["foils"]),
        "exact": exact,
        "baseline": baseline,
        "seed": seed,
        "max_rows": max_rows,
    }
    if method in get_args(EdgeMethod):
        return perform(EdgeAttribution(steps=steps, quadrature=quadrature, **common), model, **run)
    return perform(
        AttributionPatching(sites=tuple(map(canonical_site, words_of(sites))), **common), model, **run
    )
