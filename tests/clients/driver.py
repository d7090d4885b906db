"""Command line of the scripts that drive a client.

Runs in the client's own environment, so it imports only the standard library.
"""

import asyncio
import inspect
import json
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Call:
    """One request to send, in terms that every client's script translates into its client's own.

    Attributes:
        folder: where the images that the client returns are saved, as 0.png, 1.png, ...
    """

    address: str
    token: str
    folder: Path
    request: dict

    def pick(self, *names: str) -> dict:
        """Return the named fields of the request that are given."""
        return {name: self.request[name] for name in names if name in self.request}

    def read_images(self) -> dict[str, bytes]:
        """Return the contents of the request's image files by field."""
        return {name: Path(path).read_bytes() for name, path in self.pick("image", "mask").items()}

    def save(self, images: list[bytes], **result: object) -> dict:
        """Save the images and return their number with the rest of the result."""
        for number, image in enumerate(images):
            (self.folder / f"{number}.png").write_bytes(image)
        return {"images": len(images), **result}


def main(operations: dict, errors: tuple) -> None:
    """Perform the operation named on the command line; print its result, or the client's own exception."""
    address, token, operation, folder, request = sys.argv[1:]
    try:
        result = operations[operation](Call(address, token, Path(folder), json.loads(request)))
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
    except errors as error:
        code = getattr(error, "code", getattr(error, "status", ""))
        result = {"error": f"{type(error).__name__} {code} {getattr(error, 'message', error)}"}
    print(json.dumps(result))
