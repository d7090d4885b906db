"""Random scenes and their training captions: shuffled tags, some of them dropped, with some meaningless ones.

Of two subjects the left one comes first, so that the order of a prompt's tags decides which of them has what.
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
"""The tags of the undesired-content presets. All of them go with degraded images."""
NEUTRAL_TAGS = (
    *("looking at viewer", "simple background", "anime", "original", "cute", "standing", "portrait", "bangs"),
    *("year 2023", "rating:general", "illustration", "straight-on", "centered", "colorful", "safe"),
)
"""Tags that are true of every image or have no visible meaning here."""

FALSE_BAD_SHARE = 0.25
"""Share of good images with bad quality tags. With none, guidance away from those tags overshoots: edges turn hard."""
Word = TypeVar("Word", bound=str)
HAIRCUTS: tuple[Haircut, ...] = ("long hair", "short hair", "twintails", "ponytail")
MOUTHS: tuple[Mouth, ...] = ("smile", "smile", "open mouth", "frown", "expressionless")


def choose_word(rng: np.random.Generator, choices: Iterable[Word]) -> Word:
    """Return one of the words at random."""
    words = list(choices)
    return words[rng.integers(len(words))]


def random_character(rng: np.random.Generator) -> Character:
    """Return a random character. Boys have short hair."""
    boy = bool(rng.random() < 0.25)
    haircut: Haircut = "short hair" if boy else choose_word(rng, HAIRCUTS)
    return Character(
        boy=boy,
        hair=choose_word(rng, HAIR),
        haircut=haircut,
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
    """Return a random scene. No subject has the color of the background; 22 % of the scenes are degraded."""
    style = "" if rng.random() < 0.55 else choose_word(rng, list(STYLES)[1:])
    degradation = float(rng.random()) if rng.random() < 0.22 else None
    gradient = bool(rng.random() < 0.1)
    if rng.random() < 0.68:
        count = 2 if rng.random() < 0.25 else 1
        people = tuple(random_character(rng) for _ in range(count))
        hair = {character.hair for character in people}
        background = choose_word(
            rng, [word for word in PLAIN if word not in hair and not (word == "yellow" and "blonde" in hair)]
        )
        framing = choose_word(rng, ("upper body", *FRAMINGS))
        return Scene(people, background, framing, style, gradient, "", degradation)
    background = choose_word(rng, PLAIN)
    first = Shape(choose_word(rng, KINDS), choose_word(rng, [word for word in PLAIN if word != background]))
    count = int(rng.choice([1, 1, 1, 2, 2, 3]))
    shapes = (first,) * count
    if count == 2 and rng.random() < 0.5:
        color = choose_word(rng, [word for word in PLAIN if word != background])
        shapes = (first, Shape(choose_word(rng, KINDS), color))
    position = ""
    if count == 1 and rng.random() < 0.25:
        position = choose_word(rng, ("left", "right", "top", "bottom"))
    return Scene(shapes, background, "", style, gradient, position, degradation)


def write_caption(scene: Scene, rng: np.random.Generator, tag_rate: float = 0.92) -> str:
    """Return a training caption: the count tags, then the other tags in random order, then quality tags.

    One in ten is empty, for guidance. 35 % of those with bad quality tags have no others, like the presets.

    Args:
        tag_rate: Share of the tags after the counts that are kept.
    """
    if rng.random() < 0.1:
        return ""
    is_bad = scene.degradation is not None or rng.random() < FALSE_BAD_SHARE
    quality = _choose_quality_tags(is_bad, rng)
    if is_bad and rng.random() < 0.35:
        return ", ".join(quality)
    tags = [tag for tag in (*scene.subject_tags(), *scene.setting_tags()) if rng.random() < tag_rate]
    if rng.random() < 0.4:
        tags += [choose_word(rng, NEUTRAL_TAGS) for _ in range(rng.integers(1, 4))]
    shuffled = [tags[k] for k in rng.permutation(len(tags))]
    return ", ".join([*scene.count_tags(), *_order_by_subject(shuffled, scene, rng), *quality])


def _order_by_subject(tags: list[str], scene: Scene, rng: np.random.Generator) -> list[str]:
    """Put the tags of the left subject before those of the right one, leaving all other tags where they are.

    In half of the captions this holds for all their tags, in the others only among tags of one kind, such as hair.
    """
    subject_of = {tag: k for k, subject in reversed([*enumerate(scene.subjects)]) for tag in subject.tags()}
    is_one_group = bool(rng.random() < 0.5)

    def get_group(tag: str) -> str:
        return "" if is_one_group else tag.split()[-1]

    groups: dict[str, list[str]] = defaultdict(list)
    for tag in filter(subject_of.__contains__, tags):
        groups[get_group(tag)].append(tag)
    ordered = {name: iter(sorted(group, key=subject_of.__getitem__)) for name, group in groups.items()}
    return [next(ordered[get_group(tag)]) if tag in subject_of else tag for tag in tags]


def _choose_quality_tags(is_bad: bool, rng: np.random.Generator) -> list[str]:
    if not is_bad:
        return [tag for tag in GOOD_TAGS[:4] if rng.random() < 0.9] if rng.random() < 0.5 else []
    if rng.random() < 0.3:
        return list(BAD_TAGS[:19])
    count = int(rng.integers(1, 12))
    return [BAD_TAGS[k] for k in rng.permutation(len(BAD_TAGS))[:count]]
