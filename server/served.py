"""The model a server answers with, known from its file alone: what it is, and the profile that fits it."""

from dataclasses import dataclass

from pipelines.sniff import Identity
from server.catalog import Entry
from server.profiles import Profile


@dataclass(frozen=True, slots=True)
class Served:
    """A checkpoint before it is loaded; `fingerprint` is the 8 hex digits its pictures carry as Source."""

    entry: Entry
    identity: Identity
    profile: Profile
    reason: str
    fingerprint: str

    def card(self) -> dict[str, object]:
        """What `/models` tells: facts and how they are known, never a path."""
        return {
            "file": self.entry.path.name,
            "hash": self.fingerprint,
            "family": self.identity.family,
            "channels": self.identity.channels,
            "prediction": self.identity.prediction,
            "zero_terminal_snr": self.identity.zsnr,
            "evidence": list(self.identity.evidence),
            "profile": self.profile.name,
            "profile_reason": self.reason,
        }
