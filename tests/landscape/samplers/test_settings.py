import pytest

from assay.errors import BadInput
from assay.landscape.samplers import settings

read = settings.sampler_settings_of


def test_settings_come_as_a_mapping_or_in_words() -> None:
    expected = {"jitter": 0.5, "leapfrog": 3}
    assert read("hmc", {"leapfrog": 3, "jitter": 0.5}) == expected
    assert read("hmc", ["leapfrog=3", "jitter = 0.5"]) == expected
    assert read("sghmc", "friction=3") == {"friction": 3.0}
    assert read("sgld", "adjusted=True", 0.5) == {"adjusted": True, "momentum": 0.5}
    assert read("sgld", None) == {}


@pytest.mark.parametrize(
    ("sampler", "given", "message"),
    [
        ("sghmc", ["friction"], "sampler_settings has 'friction': write a name and a value"),
        ("sghmc", {"fraction": 1.0}, "no setting 'fraction'; it has friction"),
        ("hmc", ["leapfrog=2.5"], "leapfrog of sampler 'hmc' is '2.5': expected a whole number"),
        ("sgld", ["adjusted=1"], "expected true or false"),
        ("sghmc", ["friction=1", "friction=2"], "friction of sampler 'sghmc' is given twice"),
        ("walk", None, "sampler 'walk': there is no such one"),
    ],
)
def test_what_is_no_setting_is_refused(
    sampler: str, given: list[str] | dict[str, float], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        read(sampler, given)


@pytest.mark.parametrize("given", [5, [5], {5}])
def test_a_number_is_no_setting(given: object) -> None:
    with pytest.raises(
        BadInput, match=r"sampler_settings has .*5.*: write a name and a value, such as friction"
    ):
        settings._pairs(given)  # pyright: ignore[reportPrivateUsage] (the checker of types refuses it otherwise)
