"""Scenes at random, and the captions they are learned by: shuffled tags, some dropped, some that mean nothing.

Of two subjects the left one is told of first, so that a prompt says which of them has what.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import TypeVar

import numpy as np

from demo.characters import Character, Haircut, Mouth
from demo.palette import EYES, HAIR, PLAIN
from demo.scenes import FRAMINGS, STYLES, Scene
from demo.shapes import KINDS, Shape

GOOD_TAGS = (
    "best quality",
    "amazing quality",
    "very aesthetic",
    "absurdres",
    "highres",
    "masterpiece",
    "great quality",
)
BAD_TAGS = (
    *(
        "lowres",
        "{bad}",
        "error",
        "fewer",
        "extra",
        "missing",
        "worst quality",
        "jpeg artifacts",
        "bad quality",
    ),
    *("watermark", "unfinished", "displeasing", "chromatic aberration", "signature", "extra digits"),
    *(
        "artistic error",
        "username",
        "scan",
        "[abstract]",
        "blurry",
        "very displeasing",
        "bad anatomy",
        "bad hands",
    ),
    *(
        "@_@",
        "mismatched pupils",
        "heart-shaped pupils",
        "glowing eyes",
        "normal quality",
        "low quality",
        "nsfw",
    ),
)
"""What the undesired-content presets say; all of it goes with spoilt pictures."""
NEUTRAL_TAGS = (
    *("looking at viewer", "simple background", "anime", "original", "cute", "standing", "portrait", "bangs"),
    *("year 2023", "rating:general", "illustration", "straight-on", "centered", "colorful", "safe"),
)
"""Tags that are true of everything here or say nothing about it."""

FALSE_BAD_SHARE = 0.25
"""How many of the good pictures are called bad: with none guidance away from bad ones overshoots into hard edges."""
Word = TypeVar("Word", bound=str)
HAIRCUTS: tuple[Haircut, ...] = ("long hair", "short hair", "twintails", "ponytail")
MOUTHS: tuple[Mouth, ...] = ("smile", "smile", "open mouth", "frown", "expressionless")


def choose_word(rng: np.random.Generator, choices: Iterable[Word]) -> Word:
    """One of the words."""
    words = list(choices)
    return words[rng.integers(len(words))]


def random_character(rng: np.random.Generator) -> Character:
    """Anybody; boys wear their hair short."""
    boy = bool(rng.random() < 0.25)
    cut: Haircut = "short hair" if boy else choose_word(rng, HAIRCUTS)
    return Character(
        boy=boy,
        hair=choose_word(rng, HAIR),
        haircut=cut,
        eyes=choose_word(rng, EYES),
        mouth=choose_word(rng, MOUTHS),
        shirt=choose_word(rng, PLAIN),
        skin="dark" if rng.random() < 0.15 else "light",
        closed_eyes=bool(rng.random() < 0.1),
        hat=bool(rng.random() < 0.12),
        glasses=bool(rng.random() < 0.15),
        blush=bool(rng.random() < 0.25),
        bow=choose_word(rng, PLAIN) if rng.random() < 0.15 else None,
    )


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene that can be told from its background; a quarter is spoilt."""
    style = "" if rng.random() < 0.55 else choose_word(rng, list(STYLES)[1:])
    spoilt = float(rng.random()) if rng.random() < 0.22 else None
    fading = bool(rng.random() < 0.1)
    if rng.random() < 0.68:
        count = 2 if rng.random() < 0.25 else 1
        people = tuple(random_character(rng) for _ in range(count))
        worn = {one.hair for one in people}
        ground = choose_word(
            rng, [word for word in PLAIN if word not in worn and not (word == "yellow" and "blonde" in worn)]
        )
        return Scene(people, ground, choose_word(rng, ("upper body", *FRAMINGS)), style, fading, "", spoilt)
    ground = choose_word(rng, PLAIN)
    first = Shape(choose_word(rng, KINDS), choose_word(rng, [word for word in PLAIN if word != ground]))
    count = int(rng.choice([1, 1, 1, 2, 2, 3]))
    shapes = (first,) * count
    if count == 2 and rng.random() < 0.5:
        color = choose_word(rng, [word for word in PLAIN if word != ground])
        shapes = (first, Shape(choose_word(rng, KINDS), color))
    place = choose_word(rng, ("left", "right", "top", "bottom")) if count == 1 and rng.random() < 0.25 else ""
    return Scene(shapes, ground, "", style, fading, place, spoilt)


def write_caption(scene: Scene, rng: np.random.Generator, tag_rate: float = 0.92) -> str:
    """What a picture is learned by. It says how many there are first; the rest is shuffled and thinned.

    One in ten is empty, for guidance; of the spoilt some say nothing but how bad they are, as presets do.

    Args:
        told: how much of what is seen is said.
    """
    if rng.random() < 0.1:
        return ""
    bad = scene.degradation is not None or rng.random() < FALSE_BAD_SHARE
    quality = _choose_quality_tags(bad, rng)
    if bad and rng.random() < 0.35:
        return ", ".join(quality)
    particulars = [*scene.subject_tags(), *scene.setting_tags()]
    kept = [tag for tag in particulars if rng.random() < tag_rate]
    if rng.random() < 0.4:
        kept += [choose_word(rng, NEUTRAL_TAGS) for _ in range(rng.integers(1, 4))]
    mixed = [kept[k] for k in rng.permutation(len(kept))]
    return ", ".join([*scene.count_tags(), *_order_by_subject(mixed, scene, rng), *quality])


def _order_by_subject(tags: list[str], scene: Scene, rng: np.random.Generator) -> list[str]:
    """Tags with the left subject's before the right one's, all of them or only those of one kind, as of hair."""
    place = {tag: k for k, one in reversed([*enumerate(scene.subjects)]) for tag in one.tags()}
    whole = bool(rng.random() < 0.5)

    def kind(tag: str) -> str:
        return "" if whole else tag.split()[-1]

    kinds: dict[str, list[str]] = defaultdict(list)
    for tag in filter(place.__contains__, tags):
        kinds[kind(tag)].append(tag)
    told = {kind: iter(sorted(own, key=place.__getitem__)) for kind, own in kinds.items()}
    return [next(told[kind(tag)]) if tag in place else tag for tag in tags]


def _choose_quality_tags(bad: bool, rng: np.random.Generator) -> list[str]:
    if not bad:
        return [tag for tag in GOOD_TAGS[:4] if rng.random() < 0.9] if rng.random() < 0.5 else []
    if rng.random() < 0.3:
        return list(BAD_TAGS[:19])
    count = int(rng.integers(1, 12))
    return [BAD_TAGS[k] for k in rng.permutation(len(BAD_TAGS))[:count]]
