"""`GET /ai/generate-image/suggest-tags`: tags that complete the last one of a prompt."""

from fastapi.responses import JSONResponse

from server.api.state import StateDependency
from server.errors import Rejected, shorten

LANGUAGES = ("en", "jp")


async def suggest_tags(state: StateDependency, prompt: str = "", lang: str = "en") -> JSONResponse:
    """Return suggestions in NAI's two forms; `model` is not read, because there is one list for all models."""
    if lang not in LANGUAGES:
        raise Rejected("lang", f"{shorten(lang)} is not {' or '.join(LANGUAGES)}")
    found = await state.tags.suggest(prompt, only_japanese=lang == "jp")
    if lang == "jp":
        return JSONResponse(
            [{"jp_tag": one.japanese, "en_tag": one.tag, "power": one.count} for one in found]
        )
    return JSONResponse(
        {"tags": [{"tag": one.tag, "count": one.count, "confidence": one.confidence} for one in found]}
    )
