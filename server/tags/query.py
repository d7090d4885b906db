"""What of a prompt is completed: the tag at its end, as NAI's page cuts it out, without emphasis."""

import re

LONGEST_TAIL = 500
"""Characters at a prompt's end that are read."""
LIST_SEPARATORS = re.compile(r"[,、\n]")
SEPARATORS = re.compile(r"[#,\[{|、\n]|\. |::")
"""What ends a tag on NAI's page. Faces such as `|_|` have some of these characters too."""
WEIGHT = re.compile(r":[\d.]+\)*$")


def find_queries(prompt: str) -> tuple[str, ...]:
    """Return the texts to complete, the first one preferred: all after the last comma, and what NAI's page takes."""
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
