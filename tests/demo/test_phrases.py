"""The phrases that the image adapter's tokens are first trained on."""

import torch

from demo.adapter import TOKENS
from demo.characters import Character
from demo.phrases import PhraseEncoder, list_phrases
from demo.scenes import Scene
from demo.shapes import Shape
from demo.text_encoders import TextEncoders, split_captions

GIRL = Scene((Character(False, "red", "long hair", "blue", "smile", "green"),), "white", "upper body")
SHAPES = Scene((Shape("heart", "pink"), Shape("cat", "black")), "white")


def test_phrases_have_a_fixed_order():
    expected = [
        "white background",
        "upper body",
        "1girl",
        "red hair",
        "green shirt",
        "blue eyes",
        "long hair",
        "smile",
    ]
    assert list(list_phrases(GIRL)) == expected
    shapes = list_phrases(SHAPES)
    assert shapes[:5] == ("white background", "", "no humans", "pink heart", "black cat")
    assert len(shapes) == TOKENS
    assert set(shapes[5:]) == {""}


def test_phrases_are_encoded_as_the_state_of_their_last_token():
    torch.manual_seed(5)
    encoders = TextEncoders().eval()
    tokens = PhraseEncoder(encoders)([GIRL, SHAPES])
    assert tokens.shape == (2, TOKENS, 96)
    with torch.inference_mode():
        context = encoders(split_captions(["red hair"], 1))[0][0]
    # begin, red, hair
    torch.testing.assert_close(tokens[0, 3], context[2])
    torch.testing.assert_close(tokens[1, 1], context[0])
