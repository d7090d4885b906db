"""Calls in threads, next to the event loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

Args = TypeVarTuple("Args")
Done = TypeVar("Done")


async def call_in_thread(function: Callable[[*Args], Done], *args: *Args) -> Done:
    """Return what a function returns that is called in a thread.

    Unlike with `asyncio.to_thread`, an error always arrives: no future can hold a StopIteration, and whoever waits
    for one would wait forever.
    """
    return await asyncio.to_thread(_call, function, *args)


def _call(function: Callable[[*Args], Done], *args: *Args) -> Done:
    try:
        return function(*args)
    except StopIteration as error:
        raise RuntimeError("StopIteration") from error
