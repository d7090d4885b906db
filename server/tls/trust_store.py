"""The system's list of trusted CAs.

Only Debian's is changed, where that is one documented step. For other systems, and for programs with lists of their
own, commands to run by hand are printed.
"""

import subprocess
from pathlib import Path

from server.config.toml import ConfigError
from server.tls.certificates import AUTHORITY_NAME

DEBIAN_STORE = Path("/usr/local/share/ca-certificates")
DEBIAN_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
UPDATE_COMMAND = Path("/usr/sbin/update-ca-certificates")
KEYCHAIN = "/Library/Keychains/System.keychain"
FILE_NAME = "naiad-novelai.crt"


def is_supported(store: Path) -> bool:
    """Return whether this module can change a store: Debian's, or a folder that was named instead of it."""
    return store.is_dir() and (store != DEBIAN_STORE or UPDATE_COMMAND.exists())


def find_authority(store: Path) -> bytes | None:
    """Return the CA that was added to a store, or None."""
    file = store / FILE_NAME
    return file.read_bytes() if file.is_file() else None


def add_authority(store: Path, authority: Path) -> None:
    """Add a CA to a store, in place of an earlier one."""
    (store / FILE_NAME).write_bytes(authority.read_bytes())
    _update(store)


def remove_authority(store: Path) -> None:
    """Remove the CA from a store."""
    (store / FILE_NAME).unlink()
    _update(store, "--fresh")  # without it, a link to the removed file stays


def _update(store: Path, *options: str) -> None:
    if store != DEBIAN_STORE:
        return
    done = subprocess.run([UPDATE_COMMAND, *options], capture_output=True, check=False)  # noqa: S603
    if done.returncode:
        raise ConfigError(f"tls: {UPDATE_COMMAND.name} failed; run it by hand to see why")


def build_trust_command(authority: Path, system: str) -> str:
    """Return the command that adds a CA to a system's trust store."""
    commands = {
        "Darwin": f"sudo security add-trusted-cert -d -r trustRoot -k {KEYCHAIN} '{authority}'",
        "Windows": f'certutil -addstore -f Root "{authority}"',
    }
    debian = f"sudo cp '{authority}' {DEBIAN_STORE / FILE_NAME} && sudo {UPDATE_COMMAND.name}"
    return commands.get(system, debian)


def build_removal_command(system: str) -> str:
    """Return the command that undoes the one of `build_trust_command`."""
    commands = {
        "Darwin": f"sudo security delete-certificate -c '{AUTHORITY_NAME}' {KEYCHAIN}",
        "Windows": f'certutil -delstore Root "{AUTHORITY_NAME}"',
    }
    debian = f"sudo rm {DEBIAN_STORE / FILE_NAME} && sudo {UPDATE_COMMAND.name} --fresh"
    return commands.get(system, debian)
