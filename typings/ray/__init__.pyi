# What this project uses of Ray. Ray is an extra, and its own types are partial.
from collections.abc import Mapping
from typing import Any

def init(
    address: str,
    *,
    num_cpus: int | None = None,
    include_dashboard: bool = False,
    logging_level: int = ...,
    object_store_memory: int | None = None,
    _temp_dir: str | None = None,
) -> object: ...
def shutdown() -> None: ...
def cluster_resources() -> Mapping[str, float]: ...
def get(reference: object, *, timeout: float) -> Any: ...  # noqa: ANN401
def remote(actor: type[object], /) -> object: ...
