"""The ControlNets of a request: NAI's `controlnet_condition` with its model and strength, and our list `controls`.

Clients send NAI's model and strength with every request; without an image they mean nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, cast

from PIL import Image, ImageOps
from pydantic import BeforeValidator, Field

from pipelines.job import Control, RgbImage
from pipelines.types import Size
from server.config.controlnets import find_mode
from server.engine.controlnets import ServedControl
from server.engine.model import ServedModel
from server.errors import Rejected, shorten
from server.request.images import decode_file, open_image, to_upright_rgb
from server.request.schema import (
    A_NAME,
    A_SHARE,
    A_STRENGTH,
    Name,
    Parameters,
    Share,
    Strength,
    Whole,
    WireModel,
    validate_body,
)
from server.request.unoffered import has_content

ALIASES = {"depth": "midas", "scribble": "fake_scribble", "seg": "uniformer"}
"""NAI's names of maps by ControlNet's names for them."""
MOST_CONTROLS = 4
CONDITION, LIST = "parameters.controlnet_condition", "parameters.controls"
NOT_CONFIGURED = "remove the control map; the server has no ControlNets (`controlnets` in the catalog)"
A_MODE = "a union network's control type: a name such as canny, or a number"


class ControlFields(WireModel):
    """An entry of `controls`; what is not given is the catalog's."""

    model: Name | None = Field(None, description=A_NAME)
    image: object = None
    strength: Strength | None = Field(None, description=A_STRENGTH)
    start: Share | None = Field(None, description=A_SHARE)
    end: Share | None = Field(None, description=A_SHARE)
    mode: Annotated[Whole, BeforeValidator(find_mode)] | None = Field(None, description=A_MODE)


class ConditionFields(WireModel):
    """The values that belong to `controlnet_condition`. Without an image they may hold anything."""

    controlnet_model: Name | None = Field(None, description=A_NAME)
    controlnet_strength: Strength | None = Field(None, description=A_STRENGTH)


@dataclass(frozen=True, slots=True)
class RequestedControl:
    """A control map, and the names of the request's fields with the network, the map, and the rest, for messages."""

    fields: ControlFields
    model_field: str
    image_field: str
    prefix: str


def has_controls(parameters: Parameters) -> bool:
    """Return whether a request has control maps."""
    return has_content(parameters.controlnet_condition) or has_content(parameters.controls)


def read_controls(parameters: Parameters, model: ServedModel, size: Size) -> tuple[Control, ...]:
    """Read a request's control maps, fitted to a size in pixels. Those of strength 0 are left out.

    Raises:
        Rejected: the model has no such ControlNet, a map cannot be read, or a value is not allowed.
    """
    requested = [*_list_condition(parameters), *_list_several(parameters)]
    if len(requested) > MOST_CONTROLS:
        raise Rejected(LIST, f"{len(requested)} control maps; at most {MOST_CONTROLS}")
    controls = tuple(_read_control(one, model, size) for one in requested)
    return tuple(control for control in controls if control.strength)


def _list_condition(parameters: Parameters) -> Iterator[RequestedControl]:
    if not has_content(parameters.controlnet_condition):
        return
    sent = parameters.model_dump(include=set(ConditionFields.model_fields))
    values = validate_body(ConditionFields, sent, ("parameters",))
    fields = ControlFields.model_validate(
        {
            "model": values.controlnet_model,
            "image": parameters.controlnet_condition,
            "strength": values.controlnet_strength,
        }
    )
    yield RequestedControl(fields, "parameters.controlnet_model", CONDITION, "parameters.controlnet_")


def _list_several(parameters: Parameters) -> Iterator[RequestedControl]:
    if not has_content(parameters.controls):
        return
    if not isinstance(parameters.controls, list):
        raise Rejected(
            LIST, f"{shorten(parameters.controls)} is not an array of objects with model and image"
        )
    for index, entry in enumerate(cast("list[object]", parameters.controls)):
        field = f"{LIST}.{index}"
        if not isinstance(entry, dict):
            raise Rejected(field, f"{shorten(entry)} is not an object with model and image")
        fields = validate_body(
            ControlFields, cast("dict[str, object]", entry), ("parameters", "controls", str(index))
        )
        if not has_content(fields.image):
            raise Rejected(
                f"{field}.image",
                "no image; send a map in Base64, as /ai/annotate-image draws it, or remove the entry",
            )
        yield RequestedControl(fields, f"{field}.model", f"{field}.image", f"{field}.")


def _read_control(requested: RequestedControl, model: ServedModel, size: Size) -> Control:
    fields, served = requested.fields, find_control(requested, model)
    settings = served.settings
    start = settings.start if fields.start is None else fields.start
    end = settings.end if fields.end is None else fields.end
    if start >= end:
        raise Rejected(f"{requested.prefix}start", f"{start:g} is not below the end, {end:g}")
    return Control(
        served.name,
        settings.path,
        served.fingerprint,
        read_map(fields.image, requested.image_field, size),
        settings.strength * (1.0 if fields.strength is None else fields.strength),
        start,
        end,
        _choose_mode(requested, served),
    )


def read_map(value: object, field: str, size: Size) -> RgbImage:
    """Decode a control map, black where it is transparent. It covers `size`, and is cropped at the center.

    Raises:
        Rejected: the image cannot be read.
    """
    rgb = to_upright_rgb(open_image(decode_file(value, field), field), "black")
    if rgb.size != size:
        rgb = ImageOps.fit(rgb, size, Image.Resampling.LANCZOS)
    return RgbImage(*size, rgb.tobytes())


def find_control(requested: RequestedControl, model: ServedModel) -> ServedControl:
    """Return the ControlNet that a request names, or the only one; NAI's and ControlNet's names of maps are alike.

    Raises:
        Rejected: there is none, it is for another family of models, or one of several has to be named.
    """
    controls, field, name = model.controls, requested.model_field, requested.fields.model
    usable, offered = controls.usable, ", ".join(controls.usable)
    if not usable and not controls.problems:
        raise Rejected(requested.image_field, NOT_CONFIGURED)
    if not name:
        if len(usable) == 1:
            return next(iter(usable.values()))
        reason = f"is required: {offered}" if usable else next(iter(controls.problems.values()))
        raise Rejected(field, reason)
    known = {other: other for other in (*controls.problems, *usable)}
    folded = {_fold(other): other for other in known} | known
    found = folded.get(name, folded.get(_fold(name), ""))
    if found in usable:
        return usable[found]
    if found:
        raise Rejected(field, f"{shorten(name)} {controls.problems[found]}")
    near = get_close_matches(_fold(name)[:100], list(folded), n=1)
    hint = f"did you mean {folded[near[0]]!r}? " if near else ""
    raise Rejected(
        field, f"{shorten(name)} is not one of the ControlNets; {hint}offered: {offered or 'none'}"
    )


def _fold(name: str) -> str:
    return ALIASES.get(name.lower(), name.lower())


def _choose_mode(requested: RequestedControl, served: ServedControl) -> int | None:
    mode = served.settings.mode if requested.fields.mode is None else requested.fields.mode
    field, name = f"{requested.prefix}mode", repr(served.name)
    if served.modes is None:
        if mode is not None:
            raise Rejected(field, f"remove it; {name} has one control type")
        return None
    allowed = f"0 to {served.modes - 1}"
    if mode is None:
        reason = f"{name} needs a control type: `mode` in the catalog, or in an entry of parameters.controls"
        raise Rejected(requested.model_field, f"{reason} ({allowed})")
    if not 0 <= mode < served.modes:
        raise Rejected(field, f"{mode} is not a control type of {name}; {allowed} are")
    return mode
