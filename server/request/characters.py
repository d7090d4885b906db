"""Characters by place: groups the captions of a structured prompt by the centers of their regions.

NAI's page sends the middle of a cell of its 5 x 5 grid as a center, and the image's middle for a character without a
place; other clients send any center. Regions are drawn by pipelines/sampling/regions.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from pipelines.job import Character
from server.errors import Rejected
from server.request.v4_prompt import V4_PROMPTS, Caption, join_texts, read_v4_prompt

MOST_REGIONS = 6
"""NAI's number of characters; each adds one row, or two with a negative prompt of its own, to every evaluation."""
MIDDLE = (0.5, 0.5)
POSITIVE, NEGATIVE = (f"parameters.{key}" for key in V4_PROMPTS)


@dataclass(frozen=True, slots=True)
class PlacedPrompts:
    """The base prompts, and the characters with regions."""

    positive: str
    negative: str
    characters: tuple[Character, ...] = ()


def place_characters(positive: object, negative: object, syntax: str) -> PlacedPrompts | None:
    """Return structured prompts with a region for each place, or None if no character has a place of its own.

    Characters with the same center share a region; those without one belong to the base prompt. Centers are read only
    if `use_coords` of the prompt is true, and ignored if all are the image's middle.

    Raises:
        Rejected: a part has the wrong type, a center is outside the image, or there are too many regions.
    """
    prompt, negatives = read_v4_prompt(positive, POSITIVE), read_v4_prompt(negative, NEGATIVE)
    centers = {caption.center for caption in prompt.characters}
    if not prompt.uses_places or centers <= {None, MIDDLE}:
        return None
    regions = _group_by_center(prompt.characters, [caption.text for caption in negatives.characters])
    unplaced = regions.pop(None, _Region())
    if len(regions) > MOST_REGIONS:
        raise Rejected(POSITIVE, f"{len(regions)} characters have places; at most {MOST_REGIONS}")
    return PlacedPrompts(
        join_texts([prompt.base, *unplaced.positives], POSITIVE, syntax),
        join_texts([negatives.base, *unplaced.negatives], NEGATIVE, syntax),
        tuple(
            Character(
                join_texts(region.positives, POSITIVE, syntax),
                join_texts(region.negatives, NEGATIVE, syntax),
                *center,
            )
            for center, region in regions.items()
            if center is not None
        ),
    )


@dataclass(frozen=True, slots=True)
class _Region:
    """The captions of the characters that share a center."""

    positives: list[str] = field(default_factory=list[str])
    negatives: list[str] = field(default_factory=list[str])


def _group_by_center(
    captions: Sequence[Caption], negatives: Sequence[str]
) -> dict[tuple[float, float] | None, _Region]:
    """Return the captions and their negatives by center; a negative without a character belongs to no center."""
    regions: dict[tuple[float, float] | None, _Region] = {}
    for caption, negative in zip_longest(captions, negatives, fillvalue=None):
        region = regions.setdefault(None if caption is None else caption.center, _Region())
        region.positives.append("" if caption is None else caption.text)
        region.negatives.append(negative or "")
    return regions
