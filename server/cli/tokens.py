"""`naiad token`: list, add and revoke the accounts of several people."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from server.cli import options
from server.cli.options import option
from server.config.settings import load_settings
from server.config.toml import ConfigError

app = typer.Typer(help="Add, list and revoke accounts, each with a token and limits.", no_args_is_help=True)
Tokens = Annotated[Path | None, option(help="Accounts file; by default the setting tokens.")]
Name = Annotated[str, typer.Argument(help="Name of the account, as the log shows it.", show_default=False)]
SHORTEST_PASSWORD = 8
HIGHEST_LIMIT = 1_000_000
"""Of images and requests; an account without a limit needs none."""


@app.command()
def add(
    name: Name,
    limit: Annotated[int | None, option(min=1, max=HIGHEST_LIMIT, help="Most images in a day (UTC).")] = None,
    concurrency: Annotated[
        int | None, option(min=1, max=HIGHEST_LIMIT, help="Most requests at a time.")
    ] = None,
    priority: Annotated[
        int | None, option(min=-100, max=100, help="0 by default; higher ones go first.")
    ] = None,
    login: Annotated[bool, typer.Option("--login", help="Ask for an e-mail address and a password.")] = False,
    tokens: Tokens = None,
    config: options.Config = None,
) -> None:
    """Add an account and print its token, of which only a hash is kept.

    With --login, clients can log in with an e-mail address and a password. Neither leaves this command.
    """
    from server.api.credentials import generate_token, hash_token
    from server.cli.account_tables import append_account

    path = _find_file(tokens, config)
    if not name.isprintable() or not 0 < len(name.strip()) == len(name) <= 64:
        raise ConfigError(f"NAME {name!a}: 1 to 64 printable characters, without spaces around them")
    made = _ask_login() if login else [generate_token()]
    append_account(
        path,
        {
            "name": name,
            "token_hash": [hash_token(token) for token in made] if len(made) > 1 else hash_token(made[0]),
            "limit": limit,
            "concurrency": concurrency,
            "priority": priority,
        },
    )
    typer.echo(f"{path}: added {name}; its token, which is not shown again:", err=True)
    typer.echo(made[0])


@app.command("list")
def list_accounts(tokens: Tokens = None, config: options.Config = None) -> None:
    """List the accounts and their limits."""
    from server.api.accounts import load_accounts

    rows: list[tuple[str, ...]] = [("NAME", "LIMIT", "CONCURRENCY", "PRIORITY", "TOKEN")]
    for account in load_accounts(_find_file(tokens, config)).account:
        shown = ", ".join(known[:15] for known in account.token_hash) or "in clear"
        numbers = (account.limit or "-", account.concurrency or "-", account.priority)
        rows.append((account.name, *map(str, numbers), shown))
    for line in _align(rows):
        typer.echo(line)


@app.command()
def revoke(name: Name, tokens: Tokens = None, config: options.Config = None) -> None:
    """Remove an account. A running server stops accepting its token within seconds."""
    from server.cli.account_tables import remove_account

    path = _find_file(tokens, config)
    remove_account(path, name)
    typer.echo(f"{path}: revoked {name}", err=True)


def _find_file(tokens: Path | None, config: Path | None) -> Path:
    path = load_settings(config, os.environ, {"tokens": tokens}).tokens
    if path is None:
        raise ConfigError("there is no accounts file: give --tokens FILE, or set tokens or NAIAD_TOKENS")
    return path


def _ask_login() -> list[str]:
    """Ask for an e-mail address and a password and return the tokens that a login with them gets.

    These are two if the address has capitals, because some clients lower-case it before deriving the access key.
    """
    from server.api.credentials import derive_access_key, derive_login_token

    email = typer.prompt("E-mail address", err=True)
    password = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    if len(password) < SHORTEST_PASSWORD:
        raise ConfigError(
            f"Password: at least {SHORTEST_PASSWORD} characters, because anyone may try to guess it"
        )
    keys = dict.fromkeys(derive_access_key(address, password) for address in (email, email.lower()))
    return [derive_login_token(key) for key in keys]


def _align(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
