"""Variables that Kubernetes and Docker set in a container for other services, by the services' names.

A service named `naiad`, or one whose name begins so, makes variables that begin with NAIAD_ in every pod of its
namespace. They are recognized by name and value together, so that a misspelled setting is not taken for one.
https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
https://docs.docker.com/engine/network/links/#environment-variables
"""

import re
from collections.abc import Mapping

NAME = r"NAIAD(?:_[A-Z0-9_]+)?"
ADDRESS = r"(?:[0-9.]{7,15}|[0-9A-Fa-f:.]{2,45})"
PORT = r"[0-9]{1,5}"
URL = rf"(?:tcp|udp|sctp)://(?:[0-9.]{{7,15}}|\[?[0-9A-Fa-f:.]{{2,45}}\]?):{PORT}"
SHAPES = tuple(
    (re.compile(NAME + name), re.compile(value))
    for name, value in (
        (r"_SERVICE_HOST", ADDRESS),
        (r"_SERVICE_PORT(?:_[A-Z0-9_]+)?", PORT),
        (r"_PORT", URL),
        (r"_PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_START|_END)?", URL),
        (r"_PORT_[0-9]+_(?:TCP|UDP|SCTP)_PROTO", r"tcp|udp|sctp"),
        (r"_PORT_[0-9]+_(?:TCP|UDP|SCTP)_PORT(?:_START|_END)?", PORT),
        (r"_PORT_[0-9]+_(?:TCP|UDP|SCTP)_ADDR", ADDRESS),
        (r"_NAME", r"/[^/]+/[^/]+"),
    )
)


def is_service_link(variable: str, environment: Mapping[str, str]) -> bool:
    """Return whether a variable of the environment describes a service instead of being meant as a setting."""
    value = environment[variable]
    if any(name.fullmatch(variable) and shape.fullmatch(value) for name, shape in SHAPES):
        return True
    # Docker's links also copy the other container's variables, under any name
    prefix, separator, _ = variable.partition("_ENV_")
    return (
        bool(separator) and re.fullmatch(r"/[^/]+/[^/]+", environment.get(f"{prefix}_NAME", "")) is not None
    )
