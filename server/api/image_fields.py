"""The fields of a request's body that hold images, and what may stand there besides Base64.

NAI's page sends images as parts of a form: the field then holds the name of a part. Next to an image it sends a key of
its own choice, and later the key alone. The names are NAI's, and the same for every endpoint.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from server.api.image_cache import ImageCache
from server.errors import Rejected, UnknownKeys, shorten
from server.request.encoded_vibe import is_encoded_vibe
from server.request.images import decode_file, is_image_file

IMAGES = ("image", "mask", "reference_image", "controlnet_condition")
"""Fields that hold one image, at the top of a body or in `parameters`."""
IMAGE_LISTS = ("reference_image_multiple", "director_reference_images")
"""Fields that hold several images."""
OBJECT_LISTS = {
    **{f"{name}_cached": ("data", "cache_secret_key") for name in IMAGE_LISTS},
    "controls": ("image", "image_cache_secret_key"),
}
"""Fields that hold objects, and where these have their image and its key. The last one is not NAI's."""
LONGEST_PART_NAME = 200
"""Characters of a text that may be the name of a part; only images of a few pixels have a shorter Base64."""
LONGEST_KEY = 200

Section = dict[str, object]


@dataclass(frozen=True, slots=True)
class ImageField:
    """A field that holds an image, or nothing; `cache_key` is the key that was sent with it."""

    owner: Section | list[object]
    position: str | int
    name: str
    cache_key: object = None

    @property
    def value(self) -> object:
        """What the field holds, None if it is missing."""
        if isinstance(self.owner, dict):
            return self.owner.get(cast("str", self.position))
        return self.owner[cast("int", self.position)]

    @property
    def key_name(self) -> str:
        """The name of the field with the key."""
        name = self.name.removesuffix(".data")
        return f"{name}_cache_secret_key" if name == self.name else f"{name}.cache_secret_key"

    def replace(self, value: object) -> None:
        """Put a value into the field."""
        cast("Section", self.owner)[cast("str", self.position)] = value


def find_image_fields(body: Section) -> Iterator[ImageField]:
    """Yield all fields of a body that hold an image or the key of one."""
    sections: list[tuple[str, Section]] = [("", body)]
    if isinstance(body.get("parameters"), dict):
        sections.append(("parameters.", cast("Section", body["parameters"])))
    for prefix, section in sections:
        for name in IMAGES:
            yield ImageField(section, name, prefix + name, section.get(f"{name}_cache_secret_key"))
        for name in IMAGE_LISTS:
            images = _read_list(section.get(name))
            yield from (ImageField(images, index, f"{prefix}{name}.{index}") for index in range(len(images)))
        for name, (image, key) in OBJECT_LISTS.items():
            entries = enumerate(_read_list(section.get(name)))
            objects = ((index, cast("Section", entry)) for index, entry in entries if isinstance(entry, dict))
            for index, entry in objects:
                yield ImageField(entry, image, f"{prefix}{name}.{index}.{image}", entry.get(key))


def attach_parts(body: Section, parts: Mapping[str, bytes]) -> None:
    """Put the parts of a form into the fields that name them. Base64 in a form is left as it is.

    Raises:
        Rejected: a field holds a short text that is neither the name of a part nor an image in Base64, or a part is
            not named by any field.
    """
    unused = {name for name, content in parts.items() if content}
    for field in find_image_fields(body):
        value = field.value
        if isinstance(value, str) and value in parts:
            field.replace(parts[value])
            unused.discard(value)
        elif isinstance(value, str) and _is_part_name(value):
            names = ", ".join(shorten(name) for name in parts) or "none"
            words, quoted = field.name.split("."), json.dumps(value[:80])
            kind = next(word for word in reversed(words) if word != "data" and not word.isdecimal())
            reason = f"{kind} field references unknown form part {quoted}"
            raise Rejected("", f"{reason}; {field.name} must name a part or be Base64; parts: {names[:200]}")
    if unused:
        name = json.dumps(min(unused)[:80])
        raise Rejected(
            "", f"form part {name} is not named by any image field; name it in one, or leave it out"
        )


def _is_part_name(text: str) -> bool:
    if not text or len(text) > LONGEST_PART_NAME:
        return False
    try:
        return not is_image_file(decode_file(text, ""))
    except Rejected:
        return True


def _read_list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


@dataclass(frozen=True, slots=True)
class CachedImages:
    """The images of a body that were sent with a key, and the cache of the client that sent them."""

    cache: ImageCache
    client: bytes
    fields: tuple[ImageField, ...]
    recalled: int
    """Bytes of the images that came from the cache."""

    def keep(self) -> None:
        """Put the images into the cache. Call this only after they were decoded."""
        for field in self.fields:
            with suppress(Rejected):  # a field that the request does not use may hold anything
                file = decode_file(field.value, field.name)
                if is_image_file(file) or is_encoded_vibe(file):
                    self.cache.put(self.client, cast("str", field.cache_key), file)


def recall_images(body: Section, cache: ImageCache, client: bytes) -> CachedImages:
    """Put cached images into the fields of a body for which only a key was sent.

    Raises:
        UnknownKeys: keys without an image are not in the cache; it names all of them.
        Rejected: a key is not a text.
    """
    fields = [field for field in find_image_fields(body) if field.cache_key not in (None, "")]
    invalid, recalled = dict[str, None](), 0
    for field in fields:
        key = field.cache_key
        if not isinstance(key, str) or len(key) > LONGEST_KEY:
            raise Rejected(
                field.key_name, f"{shorten(key)} is not a text of at most {LONGEST_KEY} characters"
            )
        if field.value:
            continue
        file = cache.get(client, key)
        if file is None:
            invalid[key] = None
        else:
            field.replace(file)
            recalled += len(file)
    if invalid:
        raise UnknownKeys(list(invalid))
    return CachedImages(cache, client, tuple(fields), recalled)
