"""Names of archived files: `2026-11-29/20261129-173625123+0100-0-1234567890-5f0c9a3be1d24477.png`.

Date and time are local, as in the folders of other programs, with their offset from UTC. Then come the number of the
picture in its request, its seed, the id of the request and, if an account sent it, the account's tag.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

TIME = "%Y%m%d-%H%M%S"
NAME = re.compile(
    r"(?P<created>\d{8}-\d{9}[+-]\d{4})-(?P<index>\d{1,2})-(?P<seed>\d{1,10})"
    r"-(?P<request>[0-9a-f]{16})(?:-(?P<owner>[0-9a-f]{12}))?\.(?P<suffix>png|webp)",
    re.ASCII,
)
FOLDER = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class PictureName:
    """What a file's name says of the picture.

    Attributes:
        created: local time with its offset, in whole milliseconds.
        request_id: 16 hexadecimal digits, as in `X-Request-Id`.
        index: number of the picture in its request, from 0.
        owner: tag of the account, or an empty string.
        suffix: "png" or "webp".
    """

    created: datetime
    request_id: str
    index: int
    seed: int
    owner: str
    suffix: str

    @property
    def id(self) -> str:
        """The name by which clients ask for the picture."""
        return f"{self.request_id}-{self.index}"

    @property
    def milliseconds(self) -> int:
        """The time of creation in milliseconds since 1970 (UTC)."""
        return to_milliseconds(self.created)

    @property
    def path(self) -> str:
        """The path below the archive's folder."""
        milliseconds = f"{self.created.microsecond // 1000:03}{self.created:%z}"
        owner = f"-{self.owner}" if self.owner else ""
        parts = f"{self.index}-{self.seed}-{self.request_id}{owner}.{self.suffix}"
        return f"{self.created:%Y-%m-%d}/{self.created:{TIME}}{milliseconds}-{parts}"


def parse_name(name: str) -> PictureName | None:
    """Return what a file's name says, or None if it is not the name of an archived picture."""
    found = NAME.fullmatch(name)
    if found is None:
        return None
    try:
        created = datetime.strptime(found["created"], f"{TIME}%f%z")
    except ValueError:  # a month 13, for example
        return None
    numbers = int(found["index"]), int(found["seed"])
    return PictureName(created, found["request"], *numbers, found["owner"] or "", found["suffix"])


def to_milliseconds(time: datetime) -> int:
    """Return a time in milliseconds since 1970 (UTC)."""
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


def to_local_time(time: datetime) -> datetime:
    """Return a time in local time, in whole milliseconds and with an offset in whole minutes."""
    local = time.astimezone()
    return local.replace(microsecond=local.microsecond // 1000 * 1000)


def tag_account(name: str) -> str:
    """Return the tag that stands for an account in names of files; accounts may have names that files cannot have."""
    return sha256(f"account {name}".encode()).hexdigest()[:12]
