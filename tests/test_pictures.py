"""Every picture of the documentation can be made again by name."""

from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def test_every_picture_has_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    import pictures

    there = {path.stem for path in DOCS.rglob("*") if path.suffix in {".svg", ".png"}}
    drawn = [Path(place).stem for place in (*pictures.OF_SMOLLM2, *pictures.OF_KNOWN, *pictures.LONG)]
    made = [*drawn, *pictures.ELSEWHERE]
    assert sorted(made) == sorted(there)
    for name in ("no_such_picture", *pictures.ELSEWHERE):
        with pytest.raises(SystemExit, match=f"'{name}' is not drawn here"):
            pictures.main([name])
