"""Entries of the hosts file that resolve NAI's names to this machine.

They are a block between two comments at the beginning of the file, so that removing it restores the file's exact bytes.
"""

import os
import re
from pathlib import Path

ADDRESS = "127.0.0.1"
REDIRECTED = ("image.novelai.net", "api.novelai.net")
"""The hosts that generate images and log in. The web page and NAI's text models stay reachable."""
ENTRY = f"{ADDRESS} {' '.join(REDIRECTED)}"
BLOCK = f"# naiad tls: begin (naiad tls uninstall removes these lines)\n{ENTRY}\n# naiad tls: end\n".encode()
ANY_BLOCK = re.compile(rb"# naiad tls: begin.*\n(?:.*\n)*?# naiad tls: end\n")


def default_hosts_file() -> Path:
    """Return the path of this system's hosts file."""
    if os.name == "nt":
        return Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32/drivers/etc/hosts"
    return Path("/etc/hosts")


def has_entries(file: Path) -> bool:
    """Return whether a hosts file has the entries, also those of another version."""
    return file.is_file() and ANY_BLOCK.search(file.read_bytes()) is not None


def add_entries(file: Path) -> None:
    """Write the entries to a hosts file, in place of those it has.

    The file is written in place: one that is mounted into a container cannot be replaced.
    """
    content = file.read_bytes() if file.exists() else b""
    file.write_bytes(BLOCK + ANY_BLOCK.sub(b"", content))


def remove_entries(file: Path) -> None:
    """Remove the entries from a hosts file and leave everything else as it is."""
    file.write_bytes(ANY_BLOCK.sub(b"", file.read_bytes()))
