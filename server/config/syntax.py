"""What is wrong with the syntax of a TOML file, in the words of someone who writes settings instead of a parser's."""

import re

SECRETS = {"token", "token_hash", "key"}
"""Keys whose values are left out of error messages."""
LONGEST_VALUE = 60
QUOTES = "\u201c\u201d\u201e\u2018\u2019"
"""What word processors make of straight quotes, the only ones of TOML."""
STATEMENT = "should be a key and its value, like port = 4242, or a table, like [speed], alone on its line"
REASONS = (
    (
        r"Unescaped|Invalid hex|Escaped",
        r'a backslash in "…" begins an escape; put a path into ' "'…' or write it with /",
    ),
    (r"Unterminated|Expected \"'|Illegal character '\\n'", "a text has no closing quote"),
    (r"Illegal|Found invalid", "a control character, which TOML does not allow; delete it"),
    (r"Unclosed array", "a list needs a comma between its values, and ] at its end"),
    (r"Unclosed inline|Expected '}'", "an inline table needs a comma between its keys, and } at its end"),
    (r"Duplicate", "a table in { } has a key twice; keep one"),
)
"""Our words for what tomllib's messages begin with, wherever in a statement it is."""


def explain_syntax(reason: str, line: str) -> str:
    """Return why a line is not TOML, by the reason that tomllib gives; without the value if it is a secret.

    >>> explain_syntax("Invalid value", "graphs = auto")
    'graphs = auto: text needs quotes: graphs = "auto"'
    """
    for pattern, words in REASONS:
        if re.match(pattern, reason):
            return words
    table = re.match(r"\s*\[+([^\]]*)", line)
    pair = re.match(r"\s*([\w.\"'-]+)\s*=\s*(.*?)\s*(?:\s#.*)?$", line)
    if reason.startswith("Cannot"):
        name = f"[{table[1]}]" if table else pair[1] if pair else "a key"
        return f"{name} is set above already; put it in one place"
    if not line.strip():
        return "the file ends within a value"
    if pair is None:
        return "this is no value; text needs quotes" if reason == "Invalid value" and not table else STATEMENT
    return _explain_value(pair[1], pair[2])


def _explain_value(key: str, value: str) -> str:
    if not value or value.startswith("#"):
        return f"{key} has no value"
    if key.rpartition(".")[2].strip("\"'") in SECRETS:
        return f"{key}: text needs quotes around all of it"
    shown = f"{key} = {value[:LONGEST_VALUE]}"
    if value.lower() in ("true", "false"):
        return f"{shown}: should be {value.lower()}, in lower case"
    if value[0] in "[{":
        return f"{key}: each text in it needs quotes"
    if value[0] in "\"'":
        return f"{shown}: something follows the closing quote"
    number = "not a number; " if value[0].isdigit() else ""
    bare = value.strip(QUOTES)[:LONGEST_VALUE]
    return f'{shown}: {number}text needs quotes: {key} = "{bare}"'
