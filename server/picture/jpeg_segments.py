"""Reading the segments of a user's JPEG."""

import re
from dataclasses import dataclass, field

from server.picture.parts import LARGEST_PROFILE, LONGEST_TEXT, FileParts, UnreadableFile, decode_text

MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
"""A marker that starts a segment or ends the image. Restart markers stand among the pixels' data."""
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
SCAN, END, COMMENT = 0xDA, 0xD9, 0xFE
APPLICATION = range(0xE0, 0xF0)
PIXEL_SEGMENTS = (b"JFIF", b"Adobe")
"""Application segments that say how the colors are coded."""
EXIF, PROFILE = b"Exif\0\0", b"ICC_PROFILE\0"
MOST_SEGMENTS = 10_000
MOST_SCANNED = 1 << 30
"""Scans times pixels, at least a million pixels each; a scan of 33 million pixels takes 35 ms even if it is empty.

Encoders write 12 scans at most.
"""


@dataclass(slots=True)
class _Collected:
    """Parts found so far: the bytes to keep and the contents of the others."""

    kept: list[bytes] = field(default_factory=lambda: [b"\xff\xd8"])
    exif: bytes = b""
    comment: bytes = b""
    profile: list[bytes] = field(default_factory=list[bytes])
    area: int = 0

    def add(self, marker: int, content: bytes) -> None:
        """Sort a segment in."""
        if marker == COMMENT:
            self.comment = content
        elif marker in APPLICATION and not content.startswith(PIXEL_SEGMENTS):
            if marker == 0xE1 and content.startswith(EXIF):
                self.exif = self.exif or content
            elif marker == 0xE2 and content.startswith(PROFILE):
                self.profile.append(content[len(PROFILE) :])
        else:
            self.kept.append(b"\xff%c%s%s" % (marker, (len(content) + 2).to_bytes(2), content))
        if marker in FRAMES:
            self.area = max(self.area, int.from_bytes(content[1:3]) * int.from_bytes(content[3:5]))


def read_jpeg(data: bytes) -> FileParts:
    """Return the parts of a JPEG file.

    Raises:
        UnreadableFile: it is damaged, or has more scans or segments than real files.
    """
    found, position = _Collected(), 2
    for _ in range(MOST_SEGMENTS):
        marker, content, position = _read_segment(data, position)
        if marker == SCAN:
            break
        if marker == END:
            raise UnreadableFile("a damaged JPEG: it has no pixels")
        found.add(marker, content)
    else:
        raise UnreadableFile(f"a JPEG of more than {MOST_SEGMENTS} segments")
    _check_scans(data, position, found.area)
    start = position - len(content) - 4
    pixels = b"".join([*found.kept, memoryview(data)[start:]])
    comment = decode_text(found.comment[:LONGEST_TEXT].strip(b"\0"))
    return FileParts(
        pixels, {"Comment": comment} if comment else {}, found.exif, _join_profile(found.profile)
    )


def _read_segment(data: bytes, position: int) -> tuple[int, bytes, int]:
    """Return the marker and content of the next segment, and the position after it."""
    found = MARKER.search(data, position)
    if found is None:
        raise UnreadableFile("a broken JPEG; it could not be read to its end")
    marker, start = found[1][0], found.end()
    if marker == END:
        return marker, b"", start
    length = int.from_bytes(data[start : start + 2])
    if length < 2 or start + length > len(data):
        raise UnreadableFile("a broken JPEG; it could not be read to its end")
    return marker, data[start + 2 : start + length], start + length


def _check_scans(data: bytes, position: int, area: int) -> None:
    """Refuse an image whose scans, counted from the end of the first one's header, take too long to decode."""
    most = MOST_SCANNED // max(area, 1 << 20)
    scans = 1
    for _ in range(MOST_SEGMENTS):
        if MARKER.search(data, position) is None:
            return
        marker, _, position = _read_segment(data, position)
        if marker == END:
            return
        scans += marker == SCAN
        if scans > most:
            raise UnreadableFile(
                f"a JPEG of more than {most} scans at {area} pixels; save it as a baseline JPEG"
            )
    raise UnreadableFile(f"a JPEG of more than {MOST_SEGMENTS} segments")


def _join_profile(pieces: list[bytes]) -> bytes:
    """Return the ICC profile of its pieces, each after its number and how many there are; empty if one is missing."""
    ordered = sorted(pieces, key=lambda piece: piece[:1])
    profile = b"".join(piece[2:] for piece in ordered)
    is_complete = bool(ordered) and ordered[0][1:2] == bytes([len(ordered) % 256])
    return profile if is_complete and len(profile) <= LARGEST_PROFILE else b""
