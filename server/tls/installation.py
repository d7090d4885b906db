"""What `naiad tls` does to a machine: each function changes or describes it, and yields a line for each step.

Nothing outside the folder of the certificates is changed without being asked for. What is not changed is printed as the
command that does it.
"""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from server.config.toml import ConfigError
from server.tls.certificates import NAMES, RENEWAL, Certificates, create_certificates
from server.tls.hosts_file import BLOCK, ENTRY, add_entries, has_entries, remove_entries
from server.tls.trust_store import (
    DEBIAN_BUNDLE,
    FILE_NAME,
    add_authority,
    build_removal_command,
    build_trust_command,
    find_authority,
    is_supported,
    remove_authority,
)

ROOT_REMEDY = "run the command with sudo, or the commands that naiad tls install prints without this option"


@dataclass(frozen=True, slots=True)
class Installation:
    """The places that are changed, and the name of the system, which decides the printed commands."""

    certificates: Certificates
    trust_store: Path
    hosts_file: Path
    system: str = platform.system()

    @property
    def is_trusted(self) -> bool:
        """Whether the store has this CA, and not an earlier one."""
        file = self.certificates.authority
        return file.is_file() and find_authority(self.trust_store) == file.read_bytes()


def install(place: Installation, now: datetime, *, trust: bool, hosts: bool, renew: bool) -> Iterator[str]:
    """Make certificates unless valid ones exist; if asked for, trust the CA and redirect NAI's names.

    Raises `ConfigError` before anything is changed if something that is asked for cannot be.
    """
    if trust and not is_supported(place.trust_store):
        command = build_trust_command(place.certificates.authority, place.system)
        raise ConfigError(f"--trust: naiad changes Debian's trust store only; run {command}")
    changed = [place.trust_store / FILE_NAME] * trust + [place.hosts_file] * hosts
    for path in changed:
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigError(f"{path} needs root to be written; {ROOT_REMEDY}")
    certificates = place.certificates
    if renew or _needs_renewal(certificates, now):
        create_certificates(certificates.folder, now)
        yield f"wrote {certificates.authority}: a CA for novelai.net only; its private key was not kept"
        yield f"wrote {certificates.server}: the server's certificate and key, for {', '.join(NAMES)}"
    yield f"the certificate is valid until {certificates.read_end():%Y-%m-%d}"
    yield from _trust(place, trust)
    yield from _redirect(place, hosts)
    yield from _list_programs(certificates.authority)


def _needs_renewal(certificates: Certificates, now: datetime) -> bool:
    with suppress(ConfigError):
        return certificates.read_end() - now < RENEWAL
    return True


def _trust(place: Installation, trust: bool) -> Iterator[str]:
    if trust:
        add_authority(place.trust_store, place.certificates.authority)
        yield f"wrote {place.trust_store / FILE_NAME}: this machine trusts the CA"
    elif not place.is_trusted:
        yield "to make this machine trust the CA, run:"
        yield f"  {build_trust_command(place.certificates.authority, place.system)}"


def _redirect(place: Installation, hosts: bool) -> Iterator[str]:
    if hosts:
        add_entries(place.hosts_file)
        yield f"added to {place.hosts_file}: {ENTRY}"
        yield "from now on programs on this machine reach naiad there and not NovelAI"
    elif not has_entries(place.hosts_file):
        yield f"to redirect NAI's names to this machine, add these lines to {place.hosts_file}:"
        yield from (f"  {line}" for line in BLOCK.decode().splitlines())


def _list_programs(authority: Path) -> Iterator[str]:
    """Yield what programs need that do not use the system's trust store."""
    yield "programs with trust stores of their own need one of these:"
    bundle = DEBIAN_BUNDLE if DEBIAN_BUNDLE.exists() else "a file with all CAs and this one"
    yield f"  Python: REQUESTS_CA_BUNDLE and SSL_CERT_FILE = {bundle}"
    yield f"  Node: NODE_EXTRA_CA_CERTS = {authority}"
    yield f"  Firefox: Settings, Privacy & Security, View Certificates, Authorities, Import: {authority}"
    yield "start the server with: naiad serve --tls"


def uninstall(place: Installation) -> Iterator[str]:
    """Undo what `install` has done; raise `ConfigError` at the end if something could not be undone."""
    left: list[str] = []
    for undo, line, command in _list_changes(place):
        try:
            undo()
            yield line
        except PermissionError:
            left.append(command)
    is_unknown = not is_supported(place.trust_store) and place.certificates.authority.exists()
    if is_unknown:
        yield f"if the CA was trusted by hand, run: {build_removal_command(place.system)}"
    for file in (place.certificates.authority, place.certificates.server):
        if file.exists():
            file.unlink()
            yield f"removed {file}"
    with suppress(OSError):  # it does not exist, or has other files
        place.certificates.folder.rmdir()
    if left:
        raise ConfigError(f"tls: root is needed for the rest; run {' ; '.join(left)}")


def _list_changes(place: Installation) -> Iterator[tuple[Callable[[], None], str, str]]:
    """Yield how to undo each change outside the folder, the line for it, and the command that does it by hand."""
    file, store = place.hosts_file, place.trust_store
    if has_entries(file):
        command = f"sudo sed -i '/^# naiad tls: begin/,/^# naiad tls: end/d' {file}"
        yield partial(remove_entries, file), f"removed from {file}: {ENTRY}", command
    if find_authority(store) is not None:
        command = build_removal_command(place.system)
        yield partial(remove_authority, store), f"removed {store / FILE_NAME}", command


def describe(place: Installation, now: datetime) -> Iterator[str]:
    """Yield what is installed."""
    try:
        yield place.certificates.check(now) or (
            f"certificate: valid until {place.certificates.read_end():%Y-%m-%d} ({place.certificates.server})"
        )
    except ConfigError as error:
        yield str(error)
    if place.is_trusted:
        yield f"trust: this machine trusts the CA ({place.trust_store / FILE_NAME})"
    elif find_authority(place.trust_store) is not None:
        yield f"trust: {place.trust_store / FILE_NAME} is another CA; run naiad tls install --trust"
    elif is_supported(place.trust_store):
        yield f"trust: {place.trust_store} does not have the CA"
    else:
        yield "trust: not known; naiad looks at Debian's trust store only"
    redirects = "lead to this machine" if has_entries(place.hosts_file) else "lead to NovelAI"
    yield f"hosts: NAI's names {redirects} ({place.hosts_file})"
