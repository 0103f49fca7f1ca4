"""Token text made visible: what a reader sees for spaces, line ends, controls and direction marks."""

import unicodedata

_SYMBOLS = {"\n": "↵", "\t": "⇥"}
_HIDDEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"}


def visible(text: str, limit: int = 80, space: str = "·") -> str:
    """Write every character of a token so that it can be seen and cannot act on its surroundings.

    Spaces become ``·``, line ends ``↵``, tabs ``⇥``; controls, direction marks, zero-width, private and
    unassigned characters become ``⟨U+202E⟩``; a leading combining mark gets a dotted circle to sit on.
    Everything else stays as it is.

    Args:
        text: the text of one token.
        limit: longest result in characters; longer text ends in ``…``.
        space: what a space becomes; pass ``" "`` for phrases in a sentence.

    Returns:
        The visible text; ``∅`` for an empty token.
    """
    shown = "".join(
        space if character == " " else _visible_character(character) for character in text[: limit + 1]
    )
    if text and unicodedata.combining(text[0]):
        shown = "◌" + shown
    if len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return shown or "∅"


def _visible_character(character: str) -> str:
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    if unicodedata.category(character) in _HIDDEN:
        return f"⟨U+{ord(character):04X}⟩"
    return character
