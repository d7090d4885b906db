"""Tools that the model draws: the prompts and strengths of director.toml, and the request that they make."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from server.config.resources import configs
from server.config.toml import ConfigError, StrictModel, read_toml, validate
from server.errors import Rejected, shorten
from server.request.presets import Presets, fold_tags
from server.request.schema import LONGEST_TEXT

LEVELS = 6
"""Values of `defry`."""
Share = Annotated[float, Field(ge=0, le=1)]


def _check_template(text: str) -> str:
    try:
        text.format(prompt="", mood="", source="")
    except (KeyError, IndexError, ValueError):
        raise ValueError("may have no other braces than {prompt}, {mood} and {source}") from None
    return text


class Recipe(StrictModel):
    """The img2img request that a tool makes of the model; director.toml explains the keys."""

    prompt: Annotated[str, AfterValidator(_check_template)]
    negative: str = ""
    strength: Annotated[tuple[Share, ...], Field(min_length=LEVELS, max_length=LEVELS)]
    keep_lines: bool = False
    paper: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def needs_mood(self) -> bool:
        """Whether its request's prompt begins with a mood."""
        return "{mood}" in self.prompt


class Recipes(StrictModel):
    """The contents of director.toml."""

    levels: Annotated[tuple[str, ...], Field(min_length=LEVELS, max_length=LEVELS)]
    recipes: dict[str, Recipe]
    moods: dict[str, str]

    def parse_level(self, value: object) -> int:
        """Return the number of a `defry`, given as a number or by its name; without one, 0."""
        text = "0" if value is None else str(value).strip().lower().removesuffix(".0")
        if text in self.levels:
            return self.levels.index(text)
        if isinstance(value, bool) or text not in ("", *map(str, range(LEVELS))):
            raise Rejected("defry", f"{shorten(value)} is not a whole number from 0 to {LEVELS - 1}")
        return int(text or 0)

    def parse_mood(self, prompt: str) -> tuple[str, str]:
        """Return the mood in a prompt such as `happy;;red hair`, and what follows it.

        Raises:
            Rejected: there is no such mood; the message names all.
        """
        mood, _, extra = prompt.partition(";;")
        mood = mood.strip(" ,").lower()
        if mood not in self.moods:
            reason = f"{shorten(mood)} is not a mood; begin the prompt with a mood and ';;'"
            raise Rejected("prompt", f"{reason}. Moods: {', '.join(self.moods)}")
        return mood, extra

    def build_prompts(self, tool: str, prompt: str, mood: str, source: str) -> tuple[str, str]:
        """Return prompt and negative prompt.

        Args:
            mood: the name of one, or empty.
            source: the image's own prompt.
        """
        recipe = self.recipes[tool]
        dropped = fold_tags(", ".join((recipe.negative, *(self.moods.values() if mood else ()))))
        tags = (tag.strip() for tag in source.partition("|")[0].split(","))
        kept = [tag for tag in tags if not fold_tags(tag) <= dropped]
        # braces may stand around several tags; without their partners they would emphasize all that follows
        own = ", ".join(tag.strip("{}[]") for tag in kept)
        text = recipe.prompt.format(prompt=prompt, mood=self.moods.get(mood, ""), source=own)
        return _join_tags(text)[:LONGEST_TEXT], recipe.negative


def _join_tags(*texts: str) -> str:
    """Return the tags of some texts that are not empty, each as it is written."""
    return ", ".join(tag.strip() for text in texts for tag in text.split(",") if tag.strip())


def build_body(
    recipe: Recipe,
    prompts: tuple[str, str],
    level: int,
    seed: int | None,
    image: bytes,
    size: tuple[int, int],
    presets: Presets,
    model: str,
) -> Mapping[str, object]:
    """Return the body of the img2img request that a tool makes, with the model's own quality tags and UC preset."""
    undesired = presets.for_model(presets.canonical(model)).undesired
    light = undesired[min(1, len(undesired) - 1)].text
    parameters = {
        "width": size[0],
        "height": size[1],
        "image": image,
        "strength": recipe.strength[level],
        "seed": seed,
        "negative_prompt": _join_tags(prompts[1], light),
        "qualityToggle": True,
    }
    return {"action": "img2img", "input": prompts[0], "model": model, "parameters": parameters}


@cache
def load_recipes() -> Recipes:
    """Read director.toml; raise `ConfigError` if it has an unknown key or an invalid value."""
    file: Path = configs() / "director.toml"
    recipes = validate(Recipes, read_toml(file), file)
    if not all(fold_tags(text) for text in recipes.moods.values()):
        raise ConfigError(f"{file}: moods: each needs a text")
    return recipes
