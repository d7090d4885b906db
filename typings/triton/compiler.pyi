from collections.abc import Mapping
from typing import Any

from triton import JITFunction

class CompiledMetadata:
    shared: int
    maxnreg: int

class CompiledKernel:
    asm: Mapping[str, Any]  # text and binaries by the names of their stages
    metadata: CompiledMetadata

class ASTSource:
    def __init__(
        self,
        kernel: JITFunction,
        signature: Mapping[str, str],
        constants: Mapping[str, int],
        attributes: Mapping[tuple[int], list[list[str | int]]],
    ) -> None: ...
