"""Arguments of config files."""

import pytest

from deeplab_jax.config import parse_arg, parse_stage
from deeplab_jax.errors import UserError, suggest


def test_arguments_take_the_types_of_their_defaults():
    arg = parse_arg("size=256,rate=1,name=sbd,flip,crop=False,steps=7", size=512, rate=0.5, name="voc", flip=False,
                    crop=True, steps=None, batch=4)  # fmt: skip
    assert arg.to_dict() == {
        "size": 256, "rate": 1.0, "name": "sbd", "flip": True, "crop": False, "steps": 7, "batch": 4,
    }  # fmt: skip
    assert isinstance(arg.rate, float)


@pytest.mark.parametrize("arg", [None, ""])
def test_no_arguments_give_the_defaults(arg):
    assert parse_arg(arg, size=512, steps=None).to_dict() == {"size": 512, "steps": None}


@pytest.mark.parametrize("item", ["size=0.5", "size=big", "size=(1,2)", "size=True", "size", "size=", "flip=1"])
def test_an_argument_of_the_wrong_type_is_named(item):
    with pytest.raises(UserError, match=f"^config argument {item.split('=')[0]}='.*' is not a (int|bool)$"):
        parse_arg(item, size=512, flip=False)


@pytest.mark.parametrize("item", ["steps=many", "steps=True", "steps='7'"])
def test_an_argument_without_a_default_is_a_number(item):
    with pytest.raises(UserError, match="^config argument steps=.* is not a number$"):
        parse_arg(item, steps=None)


def test_an_unknown_argument_suggests_the_closest_one():
    with pytest.raises(UserError, match="'sise' does not exist; did you mean size?"):
        parse_arg("sise=256", size=512, batch=4)
    with pytest.raises(UserError, match="'x' does not exist; choose from size, batch"):
        parse_arg("x=256", size=512, batch=4)


def test_suggest_names_the_closest_or_all():
    assert suggest("quikstart", ["quickstart", "camvid"]) == "; did you mean quickstart?"
    assert suggest("zzz", ["quickstart", "camvid"]) == "; choose from quickstart, camvid"


STAGES = {1: {"init": "imagenet", "rate": 0.1, "rates": (6, 12)}, 2: {"init": "", "rate": 0.05, "rates": (3, 6)}}


@pytest.mark.parametrize(
    ("arg", "settings"),
    [
        (None, STAGES[1]),
        ("rate=0.2,init=other", {"init": "other", "rate": 0.2, "rates": (6, 12)}),
        ("rate=0", {"init": "imagenet", "rate": 0, "rates": (6, 12)}),
        ("stage=2,init=runs/stage1", {"init": "runs/stage1", "rate": 0.05, "rates": (3, 6)}),
    ],
)
def test_a_stage_has_its_settings_unless_arguments_override_them(arg, settings):
    assert parse_stage(arg, STAGES, settable=("init", "rate")).to_dict() == settings


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("stage=3", "stage=3 does not exist; choose from 1, 2"),
        ("stage=2", "stage 2 starts from the weights of the stage before; give its workdir, init=FOLDER"),
        ("rates=3", "'rates' does not exist; did you mean rate?"),
        ("rate=fast", "rate='fast' is not a number"),
    ],
)
def test_an_invalid_stage_is_named(arg, message):
    with pytest.raises(UserError, match=message):
        parse_stage(arg, STAGES, settable=("init", "rate"))


def test_an_argument_with_choices_takes_one_of_them():
    choices = {"data": ("pets", "streets")}
    assert parse_arg("data=streets", choices, data="pets", size=1).data == "streets"
    assert parse_arg(None, choices, data="pets", size=1).data == "pets"
    with pytest.raises(UserError, match="^data=street does not exist; did you mean streets"):
        parse_arg("data=street", choices, data="pets", size=1)
