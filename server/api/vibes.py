"""`POST /ai/encode-vibe`, which clients ask for before they send a reference image to a model of V4 or V4.5."""

from server.errors import Rejected
from server.request.unoffered import VIBES


def refuse_vibe() -> None:
    """Refuse any request, in the words that a reference image of V3 is refused in."""
    raise Rejected("image", VIBES)
