"""`naiad tls`: certificates for clients that have NAI's address built in."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.options import Config, option
from server.config.settings import load_settings, tls_folder

if TYPE_CHECKING:
    from server.tls.installation import Installation

app = typer.Typer(
    help="Certificates for clients that have NAI's address built in (see docs/tls.md).", no_args_is_help=True
)
Folder = Annotated[Path | None, option(help="Folder of the certificates; by default the setting tls_folder.")]
TrustStore = Annotated[Path | None, option(help="Folder of trusted CAs; by default Debian's.")]
HostsFile = Annotated[Path | None, option(help="Hosts file; by default the system's.")]


@app.command()
def install(
    trust: Annotated[bool, typer.Option("--trust", help="Make this machine trust the CA (Debian).")] = False,
    hosts: Annotated[bool, typer.Option("--hosts", help="Redirect NAI's names in the hosts file.")] = False,
    renew: Annotated[bool, typer.Option("--renew", help="Replace certificates that are valid.")] = False,
    folder: Folder = None,
    trust_store: TrustStore = None,
    hosts_file: HostsFile = None,
    config: Config = None,
) -> None:
    """Make a CA and a certificate for novelai.net, and print or do what else is needed."""
    from server.tls import installation

    target = _locate(config, folder, trust_store, hosts_file)
    for line in installation.install(target, datetime.now(UTC), trust=trust, hosts=hosts, renew=renew):
        typer.echo(line)


@app.command()
def uninstall(
    folder: Folder = None,
    trust_store: TrustStore = None,
    hosts_file: HostsFile = None,
    config: Config = None,
) -> None:
    """Remove the certificates, the CA from the trust store, and the entries from the hosts file."""
    from server.tls import installation

    for line in installation.uninstall(_locate(config, folder, trust_store, hosts_file)):
        typer.echo(line)


@app.command()
def status(
    folder: Folder = None,
    trust_store: TrustStore = None,
    hosts_file: HostsFile = None,
    config: Config = None,
) -> None:
    """Print until when the certificate is valid, whether this machine trusts it, and where NAI's names lead."""
    from server.tls import installation

    for line in installation.describe(_locate(config, folder, trust_store, hosts_file), datetime.now(UTC)):
        typer.echo(line)


def _locate(
    config: Path | None, folder: Path | None, trust_store: Path | None, hosts_file: Path | None
) -> "Installation":
    """Return the files and folders that the options name, by default this system's."""
    from server.tls.certificates import Certificates
    from server.tls.hosts_file import default_hosts_file
    from server.tls.installation import Installation
    from server.tls.trust_store import DEBIAN_STORE

    settings = load_settings(config, os.environ, {"tls_folder": folder})
    store, file = trust_store or DEBIAN_STORE, hosts_file or default_hosts_file()
    return Installation(Certificates(tls_folder(settings).absolute()), store, file)
