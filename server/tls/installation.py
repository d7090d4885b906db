"""What `naiad tls` changes on a machine. Each function changes or describes it, and yields a line for each step.

Without the options --trust and --hosts nothing outside the folder of the certificates is changed; the commands that do
it are printed instead.
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
    """The files and folders to change, and the name of the system, which decides the printed commands."""

    certificates: Certificates
    trust_store: Path
    hosts_file: Path
    system: str = platform.system()

    @property
    def is_trusted(self) -> bool:
        """Whether the store has this CA, and not an earlier one."""
        file = self.certificates.authority
        return file.is_file() and find_authority(self.trust_store) == file.read_bytes()


def install(
    installation: Installation, now: datetime, *, trust: bool, hosts: bool, renew: bool
) -> Iterator[str]:
    """Make certificates unless valid ones exist; if asked for, trust the CA and redirect NAI's names.

    Raises `ConfigError` before anything is changed if something that is asked for cannot be.
    """
    if trust and not is_supported(installation.trust_store):
        command = build_trust_command(installation.certificates.authority, installation.system)
        raise ConfigError(f"--trust: naiad changes Debian's trust store only; run {command}")
    changed = [installation.trust_store / FILE_NAME] * trust + [installation.hosts_file] * hosts
    for path in changed:
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigError(f"{path} needs root to be written; {ROOT_REMEDY}")
    certificates = installation.certificates
    if renew or _needs_renewal(certificates, now):
        create_certificates(certificates.folder, now)
        yield f"wrote {certificates.authority}: a CA for novelai.net only; its private key was not kept"
        yield f"wrote {certificates.server}: the server's certificate and key, for {', '.join(NAMES)}"
    yield f"the certificate is valid until {certificates.read_end():%Y-%m-%d}"
    yield from _trust(installation, trust)
    yield from _redirect(installation, hosts)
    yield from _list_programs(certificates.authority)


def _needs_renewal(certificates: Certificates, now: datetime) -> bool:
    with suppress(ConfigError):
        return certificates.read_end() - now < RENEWAL
    return True


def _trust(installation: Installation, trust: bool) -> Iterator[str]:
    if trust:
        add_authority(installation.trust_store, installation.certificates.authority)
        yield f"wrote {installation.trust_store / FILE_NAME}: this machine trusts the CA"
    elif not installation.is_trusted:
        yield "to make this machine trust the CA, run:"
        yield f"  {build_trust_command(installation.certificates.authority, installation.system)}"


def _redirect(installation: Installation, hosts: bool) -> Iterator[str]:
    if hosts:
        add_entries(installation.hosts_file)
        yield f"added to {installation.hosts_file}: {ENTRY}"
        yield "from now on programs on this machine reach naiad there and not NovelAI"
    elif not has_entries(installation.hosts_file):
        yield f"to redirect NAI's names to this machine, add these lines to {installation.hosts_file}:"
        yield from (f"  {line}" for line in BLOCK.decode().splitlines())


def _list_programs(authority: Path) -> Iterator[str]:
    """Yield the settings of programs that do not use the system's trust store."""
    yield "programs with trust stores of their own need one of these:"
    bundle = DEBIAN_BUNDLE if DEBIAN_BUNDLE.exists() else "a file with all CAs and this one"
    yield f"  Python: REQUESTS_CA_BUNDLE and SSL_CERT_FILE = {bundle}"
    yield f"  Node: NODE_EXTRA_CA_CERTS = {authority}"
    yield f"  Firefox: Settings, Privacy & Security, View Certificates, Authorities, Import: {authority}"
    yield "start the server with: naiad serve --tls"


def uninstall(installation: Installation) -> Iterator[str]:
    """Undo what `install` has done; raise `ConfigError` at the end if something could not be undone."""
    left: list[str] = []
    for undo, line, command in _list_changes(installation):
        try:
            undo()
            yield line
        except PermissionError:
            left.append(command)
    is_unknown = not is_supported(installation.trust_store) and installation.certificates.authority.exists()
    if is_unknown:
        yield f"if the CA was trusted by hand, run: {build_removal_command(installation.system)}"
    for file in (installation.certificates.authority, installation.certificates.server):
        if file.exists():
            file.unlink()
            yield f"removed {file}"
    with suppress(OSError):  # it does not exist, or has other files
        installation.certificates.folder.rmdir()
    if left:
        raise ConfigError(f"tls: root is needed for the rest; run {' ; '.join(left)}")


def _list_changes(installation: Installation) -> Iterator[tuple[Callable[[], None], str, str]]:
    """Yield how to undo each change outside the folder, the line for it, and the command that does it by hand."""
    file, store = installation.hosts_file, installation.trust_store
    if has_entries(file):
        command = f"sudo sed -i '/^# naiad tls: begin/,/^# naiad tls: end/d' {file}"
        yield partial(remove_entries, file), f"removed from {file}: {ENTRY}", command
    if find_authority(store) is not None:
        command = build_removal_command(installation.system)
        yield partial(remove_authority, store), f"removed {store / FILE_NAME}", command


def describe(installation: Installation, now: datetime) -> Iterator[str]:
    """Yield what is installed."""
    certificates = installation.certificates
    try:
        valid = f"certificate: valid until {certificates.read_end():%Y-%m-%d} ({certificates.server})"
        yield certificates.check(now) or valid
    except ConfigError as error:
        yield str(error)
    if installation.is_trusted:
        yield f"trust: this machine trusts the CA ({installation.trust_store / FILE_NAME})"
    elif find_authority(installation.trust_store) is not None:
        yield f"trust: {installation.trust_store / FILE_NAME} is another CA; run naiad tls install --trust"
    elif is_supported(installation.trust_store):
        yield f"trust: {installation.trust_store} does not have the CA"
    else:
        yield "trust: not known; naiad looks at Debian's trust store only"
    redirects = "lead to this machine" if has_entries(installation.hosts_file) else "lead to NovelAI"
    yield f"hosts: NAI's names {redirects} ({installation.hosts_file})"
