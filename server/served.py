"""The model a server answers with, known from its file alone: what it is, and the profile that fits it."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.checkpoint import fingerprint
from pipelines.errors import WeightsError
from pipelines.sniff import Identity, identify
from server.catalog import Entry
from server.profiles import Profile, load_profiles, matching, named


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


def recognise(entry: Entry) -> Served:
    """Look at a checkpoint without loading it.

    Raises:
        WeightsError: it cannot serve.
        ConfigError: its profile does not exist.
    """
    identity = identify(entry.path, entry.prediction, entry.zsnr)
    if identity.channels != 4:
        raise WeightsError(
            entry.path, "an inpainting model, which draws only into a picture; name one with 4 channels"
        )
    profiles = load_profiles(configs() / "profiles")
    if entry.profile is not None:
        profile, reason = named(profiles, entry.profile), "the catalogue says so"
    else:
        profile, reason = matching(profiles, entry.path.name, identity)
    return Served(entry, identity, profile, reason, fingerprint(entry.path))


def configs() -> Path:
    """The folder of profiles and presets: in the checkout, or inside the package of a built wheel."""
    here = Path(__file__).parent
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"
