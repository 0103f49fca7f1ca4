"""Layer-by-token pictures: the two axes, which way the layers run, and the cursor all of them share.

A linked picture has two Vega-Lite parameters, ``cursor_layer`` and ``cursor_position``. Whoever sets them
(the report's script does, on every picture of a page) moves the outline over that layer and that token;
nothing else is drawn again. Layers are named by block: ``l`` is the place after block ``l``, and -1 the
place before the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import altair as alt

from assay.errors import BadInput
from assay.report.theme import FONT

Orientation = Literal["layers-down", "layers-right"]
ORIENTATIONS: tuple[Orientation, Orientation] = ("layers-down", "layers-right")
_ROW_HEIGHT = 16
_READABLE_WIDTH = 40
_LABEL_LENGTH = 84
_MARGIN = 9  # room between the token axis and the cells for the marks of single tokens, in pixels


@dataclass(frozen=True)
class Grid:
    """The frame of one layer-by-token picture.

    Attributes:
        name: prefix of the picture's scales and parameters; unique on a page.
        tokens: visible text of the token at each position.
        blocks: layers shown, from the first to the last; -1 is the place before the first block.
        orientation: layers from top to bottom, or from left to right.
        column_width: width of a cell in pixels.
        strong: positions whose token label is set in bold.
        layer_title: title of the layer axis.
    """

    name: str
    tokens: Sequence[str]
    blocks: Sequence[int]
    orientation: str = "layers-down"
    column_width: int = 14
    strong: frozenset[int] = field(default_factory=frozenset)
    layer_title: str = "after block"

    def __post_init__(self) -> None:
        if self.orientation not in ORIENTATIONS:
            raise BadInput(
                f"orientation={self.orientation!r} is not known: pass 'layers-down' (layers from top to "
                "bottom) or 'layers-right' (layers from left to right)."
            )

    def encoding(self) -> dict[str, Any]:
        """Give the channels that place a cell: ``position`` on one axis and ``block`` on the other."""
        return {**self.along_tokens, **self.along_layers}

    @cached_property
    def along_tokens(self) -> dict[str, Any]:
        """The token channel alone, for marks that belong to a token."""
        scale = alt.Scale(domain=list(range(len(self.tokens))), paddingInner=0, paddingOuter=0)
        if self.orientation == "layers-down":
            axis = self._token_axis(orient="top", angle=0 if self.column_width >= _READABLE_WIDTH else -90)
            return {"x": alt.X("position:O", scale=scale, axis=axis)}
        return {"y": alt.Y("position:O", scale=scale, axis=self._token_axis(orient="left", angle=0))}

    @cached_property
    def along_layers(self) -> dict[str, Any]:
        """The layer channel alone, for marks that belong to a layer."""
        scale = alt.Scale(domain=list(self.blocks), paddingInner=0, paddingOuter=0)
        label = "datum.value < 0 ? 'in' : datum.value"
        if self.orientation == "layers-down":
            axis = alt.Axis(orient="left", title=self.layer_title, labelExpr=label)
            return {"y": alt.Y("block:O", scale=scale, axis=axis)}
        axis = alt.Axis(
            orient="top", title=self.layer_title, labelExpr=label, labelAngle=0, labelOverlap=True
        )
        return {"x": alt.X("block:O", scale=scale, axis=axis)}

    def beside_tokens(self) -> dict[str, Any]:
        """Place a mark between the token axis and the first layer, at its token."""
        side = "y" if self.orientation == "layers-down" else "x"
        return {**self.along_tokens, side: alt.value(-_MARGIN / 2)}

    def under_tokens(self) -> dict[str, Any]:
        """Place a thin bar between the token axis and the first layer, as wide as its token."""
        side = "y" if self.orientation == "layers-down" else "x"
        return {**self.along_tokens, side: alt.value(2 - _MARGIN), f"{side}2": alt.value(5 - _MARGIN)}

    def places(self, positions: Sequence[int]) -> alt.Chart:
        """Begin a layer of one mark for each of some positions."""
        return alt.Chart(alt.InlineData(values=[{"position": int(position)} for position in positions]))

    def picture(self, *layers: Any, title: str, subtitle: str) -> Any:
        """Stack layers and the cursor into one picture of fixed cell size.

        Args:
            *layers: Altair charts of one mark each, lowest first.
            title: what is shown.
            subtitle: how to read its marks.

        Returns:
            A layered Altair chart without a configuration, so that it can be put beside others.
        """
        return alt.layer(
            *layers,
            *self._cursor(),
            name=self.name,
            title=alt.TitleParams(title, subtitle=subtitle),
            width=alt.Step(self.column_width),
            height=alt.Step(_ROW_HEIGHT),
        )

    def ink_over(self, field: str) -> alt.ExprRef:
        """Give the text colour, black or white, that reads best over the cell colour of a field."""
        shade = f"luminance(scale('{self.name}_color', datum.{field}))"
        return alt.ExprRef(f"!isValid(datum.{field}) ? '#808080' : {shade} > 0.3 ? '#101418' : '#ffffff'")

    def _token_axis(self, *, orient: Literal["top", "left"], angle: int) -> alt.Axis:
        strong = f"indexof({self.name}_strong, datum.value) >= 0"
        return alt.Axis(
            title=None,
            orient=orient,
            offset=_MARGIN,
            # Tokens reach the label as data: text in an expression would be code.
            labelExpr=f"{self.name}_tokens[datum.value]",
            labelFont=FONT,
            labelFontWeight=alt.condition(strong, alt.value("bold"), alt.value("normal")),
            labelAngle=angle,
            labelLimit=self.column_width - 3 if orient == "top" and angle == 0 else _LABEL_LENGTH,
            labelOverlap=False,
        )

    def _cursor(self) -> list[alt.Chart]:
        positions = alt.sequence(0, len(self.tokens), as_="position")
        blocks = alt.sequence(self.blocks[0], self.blocks[-1] + 1, as_="block")
        parameters = {
            f"{self.name}_tokens": list(self.tokens),
            f"{self.name}_strong": sorted(self.strong),
            "cursor_layer": None,
            "cursor_position": None,
        }
        token = (
            alt.Chart(positions)
            .add_params(*(alt.param(name=name, value=value) for name, value in parameters.items()))
            .transform_filter("datum.position === cursor_position")
        )
        layer = alt.Chart(blocks).transform_filter("datum.block === cursor_layer")
        return [
            token.mark_rect(style="cursor", filled=False).encode(**self.along_tokens),
            layer.mark_rect(style="cursor", filled=False).encode(**self.along_layers),
        ]
