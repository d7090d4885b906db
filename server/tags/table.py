"""Lists of tags: a file in the layout of a1111-tagcomplete, or the tags that this program knows itself.

A row has a name, a category, the number of images, and the aliases separated by commas.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from pipelines.text.prompt import parse
from server.config.toml import ConfigError, StrictModel, read_toml, require_regular_file, validate
from server.request.presets import Presets

MOST_BYTES = 1 << 28
MOST_ROWS = 1_000_000
MOST_DIGITS = 12
LONGEST_NAME = 500
"""Characters of a tag or alias; longer ones are left out, because prompts do not have them."""
GZIP_MAGIC = b"\x1f\x8b"
WORD = re.compile(r"[^\W_]{2}")
HEADER = ("name", "tag")


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag as it is written in a prompt, the number of images that have it, and other spellings of it."""

    name: str
    count: int = 0
    aliases: tuple[str, ...] = ()


class RenameFile(StrictModel):
    """The content of tag_renames.toml: the new name of each renamed tag."""

    renames: dict[str, str]


def load_renames(file: Path) -> Mapping[str, str]:
    """Read tag_renames.toml, or raise `ConfigError` if it is invalid."""
    return validate(RenameFile, read_toml(file), file).renames


def read_rows(file: Path) -> list[list[str]]:
    """Read and check a CSV file, plain or packed with gzip; `parse_tags` takes its rows.

    Raises:
        ConfigError: it cannot be read; the message names the first line that is wrong.
    """
    reader = csv.reader(StringIO(_read_text(file), newline=""))
    rows: list[list[str]] = []
    try:
        for row in reader:
            if row and not (reader.line_num == 1 and row[0].lower() in HEADER):
                if reason := _find_mistake(row):
                    raise ConfigError(f"{file}:{reader.line_num}: {reason}")
                rows.append(row)
    except csv.Error:
        raise ConfigError(
            f"{file}:{reader.line_num}: not CSV; a field is too long or has a zero byte"
        ) from None
    if not 0 < len(rows) <= MOST_ROWS:
        raise ConfigError(f"{file}: has {len(rows)} tags; at least 1, at most {MOST_ROWS}")
    return rows


def _find_mistake(row: list[str]) -> str | None:
    """Return what is wrong with a row, or None."""
    if len(row) not in (3, 4) or not row[0].strip():
        return "needs name, category, number of images and aliases, separated by commas"
    count = row[2].strip()
    if not (count.isascii() and count.isdecimal() and len(count) <= MOST_DIGITS):
        return f"{count[:40]!r} is not a number of images"
    return None


def parse_tags(rows: Iterable[list[str]]) -> list[Tag]:
    """Return the tags of rows; of two with the same name, the first."""
    tags = dict[str, Tag]()
    for row in rows:
        if len(row[0]) <= LONGEST_NAME:
            aliases = (alias.strip() for alias in "".join(row[3:]).split(",") if len(alias) <= LONGEST_NAME)
            name = format_name(row[0].strip())
            tags.setdefault(name, Tag(name, int(row[2]), tuple(alias for alias in aliases if alias)))
    return list(tags.values())


def _read_text(file: Path) -> str:
    require_regular_file(file)
    try:
        with file.open("rb") as stream:
            is_packed = stream.read(2) == GZIP_MAGIC
            stream.seek(0)
            with gzip.open(stream) if is_packed else stream as content:
                data = content.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise ConfigError(f"{file}: is damaged; its gzip data cannot be unpacked") from None
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{file}: is larger than {MOST_BYTES >> 20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line}: not UTF-8; a tag file must be") from None


def format_name(name: str) -> str:
    """Return a tag as NAI's prompts have it: with spaces, except in faces such as `^_^`."""
    return name.replace("_", " ") if WORD.search(name) else name


def rename_tags(tags: Iterable[Tag], renames: Mapping[str, str]) -> list[Tag]:
    """Return the tags by their new names, with the old ones as aliases; those without a tag are added."""
    found = {tag.name: tag for tag in tags}
    for old, new in renames.items():
        before, after = found.pop(old, Tag(old)), found.get(new, Tag(new))
        aliases = dict.fromkeys((*after.aliases, old, *before.aliases))
        aliases.pop(new, None)
        found[new] = Tag(new, max(before.count, after.count), tuple(aliases))
    return list(found.values())


def list_known_tags(presets: Presets, demo: Iterable[Tag]) -> list[Tag]:
    """Return the tags that the demo was trained with, and those of the presets."""
    texts = [text for model in presets.models for text in model.quality.values()]
    texts += [preset.text for model in presets.models for preset in model.undesired]
    plain = (run for text in texts for segment in parse(text, "nai4") for run, _ in segment.runs)
    known = sorted({tag.strip() for run in plain for tag in run.split(",")} - {""})
    tags = {tag.name: tag for tag in demo}
    return list(tags.values()) + [Tag(name) for name in known if name not in tags]
