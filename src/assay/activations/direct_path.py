"""The direct path from what each component writes to the logits: the sum, the readout frozen, the readout true."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.errors import BadInput
from assay.models.anatomy import divisor, is_centring
from assay.models.blocks import Blocks
from assay.models.intervention import capture
from assay.models.model import Model, Tokens

TOLERANCE = 1e-3
"""How far sums may be from what they should add up to, relative to the largest entry."""
ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class DirectPath:
    """What the components write at a prompt's last position, and how it is read.

    Attributes:
        model: the decoder.
        parts: what each component writes, (component, d_model): the embedding, then of each block attention, MLP, and
            heads where they are asked for.
        resid: the last residual stream, (d_model,).
        logits: what the model makes of it, (vocabulary,).
        weight: the final norm's weight, centring not included, (d_model,), float64.
        bias: the final norm's bias, likewise.
        scale: what the final norm divides by here.
        centring: the final norm subtracts the mean.
        activations: each block's neurons, (neuron,); empty where they are not asked for.
        factor: what every contribution is multiplied by before it is added to the stream.
        logit_scale: what the unembedding's result is multiplied by: 1 but in a few families.
    """

    model: Model
    parts: Tensor
    resid: Tensor
    logits: Tensor
    weight: Tensor
    bias: Tensor
    scale: Tensor
    centring: bool
    activations: tuple[Tensor, ...]
    factor: float
    logit_scale: float

    def direction(self, answer: int, foil: int | None) -> tuple[Tensor, Tensor]:
        """The vector that attributes, and the constant that no component owns.

        Args:
            answer: the token whose logit is attributed.
            foil: the token whose logit is subtracted, if any.

        Returns:
            Direction, (d_model,), and constant, (), both float64.
        """
        unembed = self.model.parts.unembed
        assert unembed is not None  # direct_path has refused others
        rows, bias = unembed.weight.detach().double(), getattr(unembed, "bias", None)  # type: ignore[union-attr]
        row = rows[answer] - (0 if foil is None else rows[foil])
        constant = self.bias @ row
        if isinstance(bias, Tensor):
            constant = constant + bias[answer].double() - (0 if foil is None else bias[foil].double())
        direction = self.logit_scale * self.weight * row / self.scale
        return (direction - direction.mean() if self.centring else direction), self.logit_scale * constant

    def target(self, logits: Tensor, answer: int, foil: int | None) -> Tensor:
        """The logit, or logit difference, of logits (..., vocabulary), in float64."""
        return (logits[..., answer].double() - (0 if foil is None else logits[..., foil].double())).detach()

    def removed(self, vectors: Tensor, answer: int, foil: int | None) -> Tensor:
        """The true direct effect of what is written: the target, minus the target without it.

        Args:
            vectors: as added to the stream, (vector, d_model).
            answer: the token whose logit is the target.
            foil: the token whose logit is subtracted, if any.

        Returns:
            (vector,), float64.
        """
        blocks, found = Blocks(self.model), []
        for some in vectors.split(ROWS_AT_ONCE):
            found.append(self.target(blocks.readout(self.resid - some), answer, foil))
        return self.target(self.logits, answer, foil) - torch.cat(found)

    def neurons(self, direction: Tensor) -> Tensor:
        """The attribution of each neuron, (block, neuron)."""
        rows = []
        for block, activation in zip(self.model.parts.blocks, self.activations, strict=True):
            assert block.mlp_down is not None  # direct_path has refused others
            given = activation.detach().requires_grad_()
            with torch.enable_grad():
                written = (block.mlp_down(given[None, None])[0, 0] * direction.to(given)).sum()
            slope = torch.autograd.grad(written, given)[0]
            rows.append(self.factor * (activation.double() * slope.double()))
        return torch.stack(rows)

    def written(self, neurons: Tensor) -> Tensor:
        """What some neurons of each block write.

        Args:
            neurons: their numbers, (block, neuron).

        Returns:
            (block, neuron, d_model).
        """
        rows = []
        for block, activation, some in zip(
            self.model.parts.blocks, self.activations, neurons.to(self.resid.device), strict=True
        ):
            assert block.mlp_down is not None  # direct_path has refused others
            alone = torch.zeros(len(some) + 1, len(activation)).to(
                activation
            )  # the last row is the bias alone
            alone[torch.arange(len(some)), some] = activation[some]
            with torch.no_grad():
                out = block.mlp_down(alone[None])[0]
            rows.append(self.factor * (out[:-1] - out[-1]))
        return torch.stack(rows)


def direct_path(model: Model, tokens: Tokens, *, heads: bool, neurons: bool) -> DirectPath:
    """Run a prompt and take apart what stands at its last position.

    Args:
        model: a decoder.
        tokens: token ids.
        heads: take the heads apart too.
        neurons: keep the neurons' activations.

    Returns:
        The parts and how they are read.

    Raises:
        BadInput: the logits are no linear map of a final norm, the blocks do not add up, or there are no such heads
            or neurons.
    """
    _require(model, heads=heads, neurons=neurons)
    layers = range(model.n_layers)
    wanted = ["resid_pre.0", f"resid_post.{layers[-1]}", "final_norm", "final_norm_scale", "logits"]
    names = ["attn_out", "mlp_out", *(["z"] if heads else []), *(["mlp_act"] if neurons else [])]
    wanted += [f"{name}.{layer}" for name in names for layer in layers]
    seen = {site: value[0, -1].detach() for site, value in capture(model, [list(tokens)], wanted).items()}
    resid = seen[f"resid_post.{layers[-1]}"]
    factor = _factor(seen, resid, model.n_layers)
    parts = [seen["resid_pre.0"][None]]
    for layer in layers:
        parts += [factor * seen[f"attn_out.{layer}"][None], factor * seen[f"mlp_out.{layer}"][None]]
        if heads:
            parts.append(factor * _heads(model, layer, seen[f"z.{layer}"]))
    weight, bias, centring = _norm(model)
    activations = tuple(seen[f"mlp_act.{layer}"] for layer in layers) if neurons else ()
    return DirectPath(
        model, torch.cat(parts), resid, seen["logits"], weight, bias, seen["final_norm_scale"].double(), centring,
        activations, factor, _logit_scale(model, seen["final_norm"], seen["logits"]),
    )  # fmt: skip


def _require(model: Model, *, heads: bool, neurons: bool) -> None:
    parts = model.parts
    if parts.final_norm is None or parts.unembed is None:
        raise BadInput(
            f"{model.source} has no final norm and unembedding that a component could be read through"
        )
    needed = ["attn_out", "mlp_out", *(["z"] if heads else []), *(["mlp_act"] if neurons else [])]
    missing = [name for name in needed if len(model.sites(name)) < model.n_layers]
    if missing:
        raise BadInput(
            f"{model.source} does not compute {', '.join(missing)} in every block; see model.sites()"
        )
    for asked, what, after in (
        (heads, "heads=True", parts.blocks[0].after_attention),
        (neurons, "top_neurons > 0", parts.blocks[0].after_mlp),
    ):
        if asked and after is not None:
            raise BadInput(
                f"{what}: {model.source} normalises what a block writes, which is then no sum of its parts"
            )


def _factor(seen: Mapping[str, Tensor], resid: Tensor, layers: int) -> float:
    """The constant that contributions are multiplied by: 1 but in a few families."""
    written = torch.stack(
        [seen[f"{name}.{i}"] for i in range(layers) for name in ("attn_out", "mlp_out")]
    ).double()
    change, total = resid.double() - seen["resid_pre.0"].double(), written.sum(0)
    factor = float(change @ total / (total @ total))
    if float((change - factor * total).abs().max()) > TOLERANCE * float(resid.abs().max()):
        raise BadInput("the blocks do not add up to the last residual stream; see `assay doctor`, check D108")
    return 1.0 if abs(factor - 1) < TOLERANCE else factor


def _heads(model: Model, layer: int, z: Tensor) -> Tensor:
    """What each head writes through the output projection, its bias left out: (head, d_model)."""
    project = model.parts.blocks[layer].attention_out
    assert project is not None  # z is its input
    alone = torch.diag_embed(z.T).permute(1, 2, 0).flatten(1)  # (head, head x d_head), one head each
    with torch.no_grad():
        return project(alone[None])[0] - project(torch.zeros_like(alone[:1])[None])[0]


def _norm(model: Model) -> tuple[Tensor, Tensor, bool]:
    """Weight and bias of the final norm, found by probes, and whether it centres."""
    norm = model.parts.final_norm
    assert norm is not None  # direct_path has refused others
    centring = is_centring(norm, model.d_model)
    probe = torch.ones(model.d_model, dtype=model.dtype, device=model.device)
    probe[::2] = -1
    if model.d_model % 2:
        probe[-3:] = torch.tensor([1.0, 1.0, -2.0])  # mean 0 and no zero, of any width
    with torch.no_grad():
        bias = norm(torch.zeros_like(probe)[None, None])[0, 0].double()
        seen = norm(probe[None, None])[0, 0].double()
        scale = divisor(norm, probe[None, None].double())[0, 0]
    return (seen - bias) / probe.double() * scale, bias, centring


def _logit_scale(model: Model, normed: Tensor, logits: Tensor) -> float:
    """The constant that logits are multiplied by: 1 but in a few families."""
    with torch.no_grad():
        plain = model.parts.unembed(normed[None, None])[0, 0].double()  # type: ignore[misc]
    found = logits.double()
    scale = float(plain @ found / (plain @ plain))
    error = float((scale * plain - found).abs().max())
    if error > TOLERANCE * float(found.abs().max()):
        raise BadInput(
            f"{model.source}: the logits differ by {error:.2g} from the unembedding of the final norm (a soft cap on "
            "them), so that they are no sum of attributions"
        )
    return 1.0 if abs(scale - 1) < TOLERANCE else scale
