"""A recipe: what it takes, what it refuses, and the files of earlier versions."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madclip.errors import RecipeError
from madclip.recipe import PRESETS, Recipe, parse_field

RANGED = {one.name: one for one in dataclasses.fields(Recipe) if one.metadata["low"] is not None}


def test_every_number_has_a_range_and_every_field_a_sentence():
    numbers = {name for name, value in Recipe().to_dict().items() if type(value) in (int, float)}
    assert numbers == set(RANGED)
    for one in dataclasses.fields(Recipe):
        assert one.metadata["meaning"].endswith(".")
        assert not one.metadata["meaning"].startswith("Of ")


@pytest.mark.parametrize("name", RANGED)
def test_the_ends_of_a_range_are_taken_and_what_lies_beyond_is_not(name):
    kind, low, high = type(RANGED[name].default), RANGED[name].metadata["low"], RANGED[name].metadata["high"]
    for end in (low, high):
        assert getattr(Recipe().replace(**{name: kind(end)}), name) == end
    beyond = [low - 1, high + 1] if kind is int else [math.nextafter(low, -math.inf), math.nextafter(high, math.inf)]
    for value in [*beyond, *([math.nan, math.inf] if kind is float else [])]:
        with pytest.raises(RecipeError, match=f"'{name}' lies between"):
            Recipe().replace(**{name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": True}, "of type int"),
        ({"epochs": 2.0}, "of type int"),
        ({"contrast": 1}, "of type bool"),
        ({"loss": "hinge"}, "one of siglip, softmax"),
        ({"betas": (0.9,)}, "two numbers"),
        ({"betas": (0.9, 1.0)}, "two numbers"),
        ({"betas": (math.nan, 0.9)}, "two numbers"),
        ({"positions": ()}, "at least one"),
        ({"positions": ("end", "end")}, "none twice"),
        ({"variants": ("jitter",)}, "needs 'identity'"),
        ({"variants": ("identity", "shear")}, "shear"),
        ({"variants": "identity"}, "is a list"),
        ({"epoch": 3}, "did you mean 'epochs'"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(change, message):
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe().replace(**change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_file(name):
    recipe = Recipe.preset(name, epochs=7)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


class TestFieldsThatAreGone:
    def test_at_its_neutral_value_it_is_passed_over(self):
        assert Recipe.from_dict({**Recipe.preset("paper").to_dict(), "average": 0.0}) == Recipe.preset("paper")

    def test_any_other_value_is_one_clear_error(self):
        with pytest.raises(RecipeError, match=r"'average' is 0\.9"):
            Recipe.from_dict({**Recipe().to_dict(), "average": 0.9})

    def test_nobody_can_set_it_any_more(self):
        with pytest.raises(RecipeError, match="unknown recipe field 'average'"):
            Recipe().replace(average=0.0)


@given(st.floats(1e-8, 10.0), st.integers(1, 100_000), st.booleans(), st.permutations(["end", "front", "middle"]))
def test_a_change_as_typed_is_the_value_itself(rate, epochs, contrast, positions):
    typed = [f"learning_rate={rate!r}", f"epochs={epochs}", f"contrast={contrast}", f"positions={','.join(positions)}"]
    recipe = Recipe().replace(**dict(map(parse_field, typed)))
    found = recipe.learning_rate, recipe.epochs, recipe.contrast, recipe.positions
    assert found == (rate, epochs, contrast, tuple(positions))


@pytest.mark.parametrize("text", ["epochs", "epochs=many", "contrast=yes", "epochz=3"])
def test_a_change_that_cannot_be_read(text):
    with pytest.raises(RecipeError):
        parse_field(text)
