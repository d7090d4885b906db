"""ZIP files of images: stored, since encoded images do not shrink, and written without copying them more than once."""

import struct
from collections.abc import Sequence

from isal import isal_zlib

LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
VERSION, UNIX = 20, 3
"""Of the format, and the system that the permissions are of."""
EARLIEST = 1 << 5 | 1
"""1980-01-01, the earliest date that there is, so that equal images give equal bytes."""
PERMISSIONS = 0o600 << 16


def zip_images(images: Sequence[bytes], suffix: str = "png") -> bytes:
    """Return a ZIP with the entries `image_0.png`, `image_1.png` and so on; byte for byte as `zipfile` writes it."""
    parts, directory, offset = list[bytes](), list[bytes](), 0
    for index, image in enumerate(images):
        name = f"image_{index}.{suffix}".encode()
        checksum = isal_zlib.crc32(image)  # pyright: ignore[reportUnknownMemberType]
        # flags, method (stored), time, date, checksum, size as it is stored, size, length of the name, of extra fields
        common = struct.pack("<HHHHIIIHH", 0, 0, 0, EARLIEST, checksum, len(image), len(image), len(name), 0)
        parts += (LOCAL + struct.pack("<H", VERSION) + common + name, image)
        # length of a comment, number of the disk, and attributes
        rest = struct.pack("<HHHII", 0, 0, 0, PERMISSIONS, offset)
        directory.append(CENTRAL + struct.pack("<BBH", VERSION, UNIX, VERSION) + common + rest + name)
        offset += len(parts[-2]) + len(image)
    entries = b"".join(directory)
    end = struct.pack("<HHHHIIH", 0, 0, len(images), len(images), len(entries), offset, 0)
    return b"".join((*parts, entries, END, end))
