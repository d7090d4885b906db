"""The suggestions of a server: its list of tags is indexed in the background, once."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from threading import Lock, Thread

from server.config.resources import configs
from server.request.presets import load_presets
from server.tags.suggestions import Suggester, Suggestion
from server.tags.table import Tag, list_known_tags, load_renames, parse_tags, read_rows, rename_tags


def read_tags(file: Path) -> Callable[[], list[Tag]]:
    """Read and check a tag file, and return a function that builds its tags, which takes longer.

    Raises:
        ConfigError: the file is invalid.
    """
    return partial(_parse_renamed, read_rows(file), load_renames(configs() / "tag_renames.toml"))


def read_known_tags() -> list[Tag]:
    """Return the tags of the demo and of NAI's presets."""
    folder = configs()
    demo = parse_tags(read_rows(folder / "demo_tags.csv"))
    known = list_known_tags(load_presets(folder / "presets.toml"), demo)
    return rename_tags(known, load_renames(folder / "tag_renames.toml"))


def _parse_renamed(rows: list[list[str]], renames: Mapping[str, str]) -> list[Tag]:
    return rename_tags(parse_tags(rows), renames)


class TagLibrary:
    """Builds a suggester in a thread of its own; only lookups wait for it."""

    def __init__(self, read: Callable[[], list[Tag]]) -> None:
        self._read = read
        self._lock = Lock()
        self._suggester: Future[Suggester] | None = None

    def start(self) -> Future[Suggester]:
        """Return the future of the suggester; the first call begins to build it."""
        with self._lock:
            if self._suggester is None:
                self._suggester = Future()
                self._suggester.set_running_or_notify_cancel()  # a client that hangs up cannot cancel it
                Thread(target=self._run, args=(self._suggester,), name="tags", daemon=True).start()
            return self._suggester

    def _run(self, suggester: Future[Suggester]) -> None:
        try:
            suggester.set_result(Suggester(self._read()))
        except BaseException as error:
            suggester.set_exception(error)
            raise

    async def suggest(self, prompt: str, only_japanese: bool = False) -> list[Suggestion]:
        """Return the suggestions for a prompt, as soon as the suggester is built."""
        suggester = await asyncio.wrap_future(self.start())
        return await asyncio.to_thread(suggester.suggest, prompt, only_japanese)
