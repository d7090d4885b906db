"""Writes the tables of docs/clients.md from clients.toml and from what the suite has recorded.

python tests/clients/client_table.py                 # write the tables
python tests/clients/client_table.py --record FILE   # keep the outcomes in FILE, then write the tables
python tests/clients/client_table.py --compare FILE  # exit with status 1 if FILE has other outcomes
"""

import json
import re
import sys
from pathlib import Path
from textwrap import fill

from register import OPERATIONS, Client, read_clients

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
PAGE = FOLDER.parent.parent / "docs" / "clients.md"
SIGNS = {"passed": "✓", "failed": "✗"}

Results = dict[str, dict[str, str]]


def read_results(file: Path = RESULTS) -> Results:
    """Return the outcome of each operation by client."""
    return json.loads(file.read_text("utf-8"))


def format_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def format_suite(clients: list[Client], results: Results) -> str:
    """Return the table of what the suite tries with each client, and why it does not try the rest."""
    tested = [client for client in clients if client.script]
    rows = [
        [client.label, *(SIGNS.get(results[client.label].get(name, ""), "-") for name in OPERATIONS)]
        for client in tested
    ]
    lacks = [f"{client.label} has {', '.join(client.lacks.values())}" for client in tested if client.lacks]
    table = format_table(["client", *OPERATIONS.values()], rows)
    legend = fill(f"-: the client does not offer it. {'; '.join(lacks)}.", 120)
    return f"{table}\n{legend}\n"


def format_addresses(clients: list[Client]) -> str:
    """Return the table of where each client's user enters the server's address."""
    rows = [
        [
            client.label,
            client.address,
            client.works or "see above",
            client.fails,
            client.known or "by the test suite",
        ]
        for client in clients
    ]
    return format_table(["client", "where the address is set", "works", "does not work", "tried"], rows)


def build_page(text: str, clients: list[Client], results: Results) -> str:
    """Return the page with the tables between their markers."""
    tables = {"suite": format_suite(clients, results), "addresses": format_addresses(clients)}
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, table=table: match[1] + table + match[2], text)
    return text


def find_differences(results: Results, recorded: Results) -> list[str]:
    """Return one line for each recorded outcome that is not in the results; what did not run is not compared."""
    return [
        f"{client}: {OPERATIONS[name]} has {outcome}, {RESULTS.name} says {results.get(client, {}).get(name)}"
        for client, outcomes in recorded.items()
        for name, outcome in outcomes.items()
        if outcome != results.get(client, {}).get(name)
    ]


def merge_results(results: Results, recorded: Results) -> Results:
    """Return the results with what was recorded in their place, in the order of clients.toml."""
    merged = {}
    for client in read_clients():
        outcomes = results.get(client.label, {}) | recorded.get(client.label, {})
        if client.script:
            merged[client.label] = {name: outcomes[name] for name in OPERATIONS if name in outcomes}
    return merged


def main(option: str = "", file: str = "") -> None:
    """Write or compare, as the command line says."""
    if option == "--compare":
        differences = find_differences(read_results(), read_results(Path(file)))
        sys.exit("\n".join(differences) or None)
    if option == "--record":
        merged = merge_results(read_results(), read_results(Path(file)))
        RESULTS.write_text(json.dumps(merged, indent=2) + "\n", "utf-8")
    PAGE.write_text(build_page(PAGE.read_text("utf-8"), read_clients(), read_results()), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
