"""What an image adapter's tokens begin as."""

import torch

from demo.adapter import TOKENS
from demo.characters import Character
from demo.phrases import PhraseEncoder, list_phrases
from demo.scenes import Scene
from demo.shapes import Shape
from demo.text_encoders import TextEncoders, split_captions

GIRL = Scene((Character(False, "red", "long hair", "blue", "smile", "green"),), "white", "upper body")
SHAPES = Scene((Shape("heart", "pink"), Shape("cat", "black")), "white")


def test_every_kind_of_phrase_has_its_token():
    said = [
        "white background",
        "upper body",
        "1girl",
        "red hair",
        "green shirt",
        "blue eyes",
        "long hair",
        "smile",
    ]
    assert list(list_phrases(GIRL)) == said
    shapes = list_phrases(SHAPES)
    assert shapes[:5] == ("white background", "", "no humans", "pink heart", "black cat")
    assert len(shapes) == TOKENS
    assert set(shapes[5:]) == {""}


def test_phrases_are_in_the_words_of_the_text_encoders():
    torch.manual_seed(5)
    language = TextEncoders().eval()
    tokens = PhraseEncoder(language)([GIRL, SHAPES])
    assert tokens.shape == (2, TOKENS, 96)
    with torch.inference_mode():
        context = language(split_captions(["red hair"], 1))[0][0]
    # begin, red, hair: the state of the last has read them all
    torch.testing.assert_close(tokens[0, 3], context[2])
    torch.testing.assert_close(tokens[1, 1], context[0])
