"""Finds the tag to complete at the end of a prompt, as NAI's page does, without emphasis."""

import re

LONGEST_TAIL = 500
"""Characters at a prompt's end that are read."""
LIST_SEPARATORS = re.compile(r"[,、\n]")
SEPARATORS = re.compile(r"[#,\[{|、\n]|\. |::")
"""Separators of tags on NAI's page. Faces such as `|_|` contain some of them too."""
WEIGHT = re.compile(r":[\d.]+\)*$")


def find_queries(prompt: str) -> tuple[str, ...]:
    """Return the texts to complete, the best first: all after the last comma, and what NAI's page would look up."""
    tail = prompt[-LONGEST_TAIL:]
    entry = LIST_SEPARATORS.split(tail)[-1].strip()
    rest = SEPARATORS.split(entry.removesuffix("::"))[-1]
    return tuple(dict.fromkeys(text for text in (entry, _strip_emphasis(rest)) if text))


def _strip_emphasis(text: str) -> str:
    """Return a tag without brackets around it, and without A1111's weight; those of its own are in pairs."""
    bare = WEIGHT.sub("", text.strip(" ]}"))
    opened, closed = bare.count("("), bare.count(")")
    if opened > closed and bare.startswith("("):
        bare = bare[opened - closed :] if bare.startswith("(" * (opened - closed)) else bare[1:]
    return bare.strip()
