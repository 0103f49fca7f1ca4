"""Settings: the round trip through JSON, and what is refused; the registry."""

import json
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import BadInput
from assay.runs.measurement import Measurement, Unit, find, from_settings, settings
from runs.toy import Toy


@dataclass(frozen=True, kw_only=True)
class Everything(Toy):
    """A setting of every kind."""

    name: ClassVar[str] = "everything"

    tokens: tuple[int, ...]
    pair: tuple[str, float] = ("x", 0.5)
    nested: tuple[tuple[int, str], ...] = ()
    choice: Literal["state", "mlp"] = "state"
    maybe: float | None = None
    flag: bool = False


EVERYTHING = st.builds(
    Everything,
    tokens=st.lists(st.integers()).map(tuple),
    pair=st.tuples(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
    nested=st.lists(st.tuples(st.integers(), st.text())).map(tuple),
    choice=st.sampled_from(["state", "mlp"]),
    maybe=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    flag=st.booleans(),
    words=st.lists(st.text(), min_size=1).map(tuple),
)


@given(EVERYTHING)
def test_settings_survive_json(measurement: Everything):
    text = json.dumps(settings(measurement))
    assert from_settings("everything", json.loads(text)) == measurement


def test_defaults_fill_what_is_missing():
    assert from_settings("everything", {"tokens": [3]}) == Everything(tokens=(3,))


def test_a_whole_number_is_a_float_where_one_is_expected():
    assert repr(settings(Toy(scale=2))["scale"]) == "2.0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": 2.0}, "'units'"),
        ({"units": True}, "'units'"),
        ({"units": "2"}, "'units'"),
        ({"scale": "1"}, "'scale'"),
        ({"scale": float("nan")}, "finite"),
        ({"words": "abc"}, "'words'"),
        ({"words": [1]}, "'words'"),
        ({"units": None}, "'units'"),
        ({"units": object()}, "cannot hold"),
        ({"unit": 3}, "no setting 'unit'"),
    ],
)
def test_wrong_settings_are_refused_by_name(change: dict[str, Any], message: str):
    with pytest.raises(BadInput, match=message):
        from_settings("toy", change)


def test_a_missing_setting_is_named():
    with pytest.raises(BadInput, match="needs the setting 'tokens'"):
        from_settings("everything", {})


def test_settings_of_the_wrong_type_are_found_before_anything_runs():
    with pytest.raises(BadInput, match="'units' of toy is '4'"):
        settings(replace(Toy(), units="4"))  # type: ignore[arg-type]


def test_an_unknown_choice_is_refused():
    with pytest.raises(BadInput, match="'state' or 'mlp'"):
        from_settings("everything", {"tokens": [], "choice": "attention"})


@pytest.mark.parametrize("name", ["no_such", "../toy", "os.path", ""])
def test_an_unknown_measurement_is_refused(name: str):
    with pytest.raises(BadInput, match="no measurement is called"):
        find(name)


def test_assays_own_measurements_are_found_by_name():
    assert find("logit_lens").__module__ == "assay.activations.logit_lens"


def test_two_measurements_cannot_share_a_name():
    with pytest.raises(TypeError, match="two measurements are called 'toy'"):

        class Impostor(Toy):
            name: ClassVar[str] = "toy"

    assert Measurement.registry["toy"] is Toy


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "a b", "x" * 121])
def test_a_unit_name_is_safe_as_a_file_name(name: str):
    with pytest.raises(ValueError, match="unit name"):
        Unit(name, {})


def test_a_unit_costs_something():
    with pytest.raises(ValueError, match="cost"):
        Unit("a", {}, cost=0)
