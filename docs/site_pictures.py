"""The pictures of docs/sites.md and docs/partial_forwards.md: one capture, and the work that partial forwards save."""

import altair as alt
import pandas as pd
import torch

import assay
from assay.models.model import Model
from assay.models.partial import SiteEdit, partial_forward, record
from assay.report.theme import config

SENTENCE = (
    "Paris is the capital of France, and Rome is the capital of Italy, and Madrid is the capital of Spain"
)


def norms(model: Model) -> alt.Chart:
    """The residual stream's norm at every block and position: one capture, and the massive first position in it."""
    names = model.sites("resid_pre")
    captured = assay.capture(model, SENTENCE, names)
    texts = model.token_texts(model.tokens(SENTENCE))
    rows = [
        {"block": block, "position": position, "norm": float(norm), "token": f"{position} {texts[position]}"}
        for block, name in enumerate(names)
        for position, norm in enumerate(captured[name][0].norm(dim=-1))
    ]
    return (
        alt.Chart(pd.DataFrame(rows), width=520, height=300)
        .mark_rect()
        .encode(
            x=alt.X("token:N", sort=None, title=None, axis=alt.Axis(labelAngle=-60)),
            y=alt.Y("block:O", title="entering block"),
            color=alt.Color(
                "norm:Q",
                title="norm of resid_pre",
                scale=alt.Scale(type="log"),
                legend=alt.Legend(format=".2~s"),
            ),
        )
        .configure(**config("light"))
    )


def saved(model: Model) -> alt.TopLevelMixin:
    """Block-tokens of a state patch of every layer, by the position patched: counted, beside full forwards."""
    length, layers = len(model.tokens(SENTENCE)), model.n_layers
    recording = record(model, SENTENCE)
    tokens = 0

    def count(_: object, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal tokens
        tokens += args[0].shape[0] * args[0].shape[1]

    rows = []
    mlps = [
        block.mlp for block in model.parts.blocks if block.mlp is not None
    ]  # called where a block really runs
    hooks = [mlp.register_forward_pre_hook(count) for mlp in mlps]
    try:
        for position in range(length):
            tokens = 0
            variants = [
                (SiteEdit(f"resid_post.{layer}", 0 * recording.resid[0][:, :1], (position,)),)
                for layer in range(layers)
            ]
            partial_forward(recording, variants, lambda logits: logits[..., 0])
            rows.append({"position": position, "work": tokens, "way": "partial forwards"})
            rows.append({"position": position, "work": layers * layers * length, "way": "full forwards"})
    finally:
        for hook in hooks:
            hook.remove()
    chart = alt.Chart(pd.DataFrame(rows), width=520, height=260).encode(
        x=alt.X("position:Q", title="position patched, in all layers"),
        y=alt.Y("work:Q", title="block-tokens computed", scale=alt.Scale(type="log")),
        color=alt.Color("way:N", title=None),
        strokeDash=alt.StrokeDash("way:N", title=None),
    )
    return alt.layer(chart.mark_line(point=True)).configure(**config("light"))
