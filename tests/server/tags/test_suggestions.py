"""Which tags are suggested for a prompt, and in which order."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.tags.index import TagIndex, fold
from server.tags.query import find_queries
from server.tags.suggestions import Suggester
from server.tags.table import Tag
from server.tags.typos import SHIFT, TypoIndex, count_typos

TAGS = [
    Tag("1girl", 6_000_000, ("1girls", "sole_female", "女の子")),
    Tag("solo", 5_000_000, ("female_solo", "ソロ", "ひとり")),
    Tag("long hair", 4_000_000, ("/lh", "longhair", "長い髪")),
    Tag("hair ornament", 1_500_000),
    Tag("blue hair", 900_000, ("bluehair", "青髪")),
    Tag("blue eyes", 2_000_000),
    Tag("smile", 3_000_000),
    Tag("twintails", 800_000),
    Tag("hatsune miku", 120_000, ("miku_hatsune", "初音ミク")),
    Tag("hatsune miku (cosplay)", 2_000),
    Tag("school uniform", 700_000, ("seifuku",)),
    Tag("|_|", 3_000, ("bar_eyes",)),
    Tag("^_^", 40_000, ("^ ^",)),
    Tag("neutral face", 900, (":|", ";|")),
    Tag("pok\u00e9mon", 50, ()),
    Tag("hair", 5, ()),
    Tag("artist:neon", 100),
    Tag("the legend of zelda: breath of the wild", 9_000),
    Tag("the legend of zelda: tears of the kingdom", 3_000),
]
SUGGESTER = Suggester(TAGS)


def suggest(prompt, **options):
    return [found.tag for found in SUGGESTER.suggest(prompt, **options)]


@pytest.mark.parametrize(
    ("prompt", "first"),
    [
        # the beginning of a tag, of a word in it, or of an alias; the most popular first, an exact name before all
        ("1gi", ["1girl"]),
        ("blue", ["blue eyes", "blue hair"]),
        ("blue h", ["blue hair"]),
        ("hair", ["hair", "hair ornament", "long hair", "blue hair"]),
        ("hai", ["hair ornament", "long hair", "blue hair", "hair"]),
        ("hatsune", ["hatsune miku", "hatsune miku (cosplay)"]),
        ("cosplay", ["hatsune miku (cosplay)"]),
        ("sole f", ["1girl"]),
        ("seifuku", ["school uniform"]),
        ("miku_h", ["hatsune miku"]),
        ("the legend of zelda: b", ["the legend of zelda: breath of the wild"]),
        ("the legend of zelda: ", ["the legend of zelda: breath of the wild", "the legend of zelda: tears of the kingdom"]),
        # spaces, underscores, case, compatible characters
        ("LONG_HAIR", ["long hair"]),
        ("  long \t hair ", ["long hair"]),
        ("\uff4cong\u3000h", ["long hair"]),
        ("pok\u00e9", ["pok\u00e9mon"]),
        ("^ ^", ["^_^"]),
        # one or two typos
        ("1gril", ["1girl"]),
        ("1girsl", ["1girl"]),
        ("sloo", ["solo"]),
        ("lnog hair", ["long hair"]),
        ("twintials", ["twintails"]),
        ("hatsnue miku", ["hatsune miku"]),
        ("hatsue mikuu", ["hatsune miku"]),
        ("school unifrm", ["school uniform"]),
        ("scholl unifrom", ["school uniform"]),
        ("the lgend of zeld", ["the legend of zelda: breath of the wild"]),
        # only the last tag, without emphasis
        ("1girl, smi", ["smile"]),
        ("1girl,blue hair、smi", ["smile"]),
        ("1girl\nsmi", ["smile"]),
        ("1girl, {{smi", ["smile"]),
        ("1girl, [smile]", ["smile"]),
        ("1girl, {smile}}", ["smile"]),
        ("(smile:1.2)", ["smile"]),
        ("((smile", ["smile"]),
        ("(hatsune miku (c", ["hatsune miku (cosplay)"]),
        ("hatsune miku (cosplay)", ["hatsune miku (cosplay)"]),
        ("1.5::smi", ["smile"]),
        ("x, -1::blue eyes, smi", ["smile"]),
        ("1.5::smile::", ["smile"]),
        ("1girl|smi", ["smile"]),
        ("A girl. Smi", ["smile"]),
        # faces have the characters that end a tag
        ("1girl, |_|", ["|_|"]),
        (":|", ["neutral face"]),
        ("|_", ["|_|"]),
        ("artist:n", ["artist:neon"]),
        ("青", ["blue hair"]),
        ("髪", ["long hair", "blue hair"]),
    ],
)  # fmt: skip
def test_a_prompt_gets_these_suggestions_first(prompt, first):
    assert suggest(prompt)[: len(first)] == first


@pytest.mark.parametrize(
    "prompt", ["", " ", ",", "1girl, ", "1girl,", "{{", "::", "a|", "\0", "qqqqqqqq", "qqqq", "_"]
)
def test_nothing_is_suggested_for_nothing(prompt):
    assert suggest(prompt) == []


def test_counts_are_limited_and_confidence_falls_with_rarity_and_typos():
    exact, rare = SUGGESTER.suggest("1girl")[0], SUGGESTER.suggest("pok\u00e9")[0]
    assert (exact.count, exact.confidence, rare.count) == (10_000, 1.0, 50)
    assert 0 < rare.confidence < 0.5
    (typo, *_) = SUGGESTER.suggest("1gril")
    assert (typo.tag, typo.confidence) == ("1girl", 0.8)


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("女", [("1girl", "女の子")]),
        ("1girl, ソロ", [("solo", "ソロ")]),
        ("ひと", [("solo", "ひとり")]),
        ("ミク", [("hatsune miku", "初音ミク")]),
        ("ﾐｸ", [("hatsune miku", "初音ミク")]),
        ("blue", [("blue hair", "青髪")]),
        ("school", []),
    ],
)
def test_in_japanese_only_tags_with_a_japanese_alias_are_suggested(prompt, found):
    suggested = SUGGESTER.suggest(prompt, only_japanese=True)
    assert [(one.tag, one.japanese) for one in suggested] == found


def test_at_most_ten_are_suggested_and_ties_keep_the_order_of_the_file():
    many = Suggester([Tag(f"tag {number:03}", 5) for number in range(300)])
    assert [one.tag for one in many.suggest("tag")] == [f"tag {number:03}" for number in range(10)]


def test_a_tag_with_many_matching_aliases_is_suggested_once():
    tags = [
        Tag("a0", 10**6, tuple(f"x{number}" for number in range(500))),
        *(Tag(f"x y{n}", 1) for n in range(20)),
    ]
    found = [one.tag for one in Suggester(tags).suggest("x")]
    assert (len(found), found[0]) == (10, "a0")


def align(query, name):
    """The fewest typos between a query and any beginning of a name, as textbooks compute it."""
    cost = {(-1, -1): 0}
    cost |= {(i, -1): i + 1 for i in range(len(query))} | {(-1, j): j + 1 for j in range(len(name))}
    for i, j in product(range(len(query)), range(len(name))):
        cost[i, j] = min(
            cost[i - 1, j] + 1, cost[i, j - 1] + 1, cost[i - 1, j - 1] + (query[i] != name[j])
        )  # fmt: skip
        if i and j and query[i] == name[j - 1] and query[i - 1] == name[j]:
            cost[i, j] = min(cost[i, j], cost[i - 2, j - 2] + 1)
    return min(cost[len(query) - 1, j] for j in range(-1, len(name)))


WORD = st.text(alphabet="abc ", min_size=1, max_size=9)


@given(WORD, st.lists(WORD, min_size=1, max_size=5))
def test_typos_are_counted_as_by_the_textbook(query, names):
    width = len(query) + SHIFT
    letters = np.array([list(name.encode().ljust(width, b"\0")[:width]) for name in names], np.uint8).T
    expected = [min(align(query, name), SHIFT + 1) for name in names]
    assert np.minimum(count_typos(query.encode(), letters), SHIFT + 1).tolist() == expected


@given(
    st.lists(st.text(alphabet="ab \u3042(", max_size=30), min_size=1, max_size=20),
    st.text(alphabet="ab \u3042(", min_size=1, max_size=28),
)
@settings(max_examples=200)  # fmt: skip
def test_exactly_the_names_with_a_word_that_begins_so_are_found(names, query):
    index, folded = TagIndex([Tag(name) for name in names]), fold(query)
    if not folded:
        return
    expected = {
        row for row, name in enumerate(map(fold, names))
        for place in range(len(name))
        if name[place:].startswith(folded)
        and (place == 0 or name[place] == "\u3042" or (name[place] in "ab" and name[place - 1] in " ("))
    }  # fmt: skip
    found = set(index.find_best(index.find_entries(folded.encode()), 100))
    assert found == expected


@given(st.text(max_size=60))
def test_every_prompt_is_answered(prompt):
    assert all(len(text) <= 500 for text in find_queries(prompt))
    assert len(SUGGESTER.suggest(prompt)) <= 10
    assert len(SUGGESTER.suggest(prompt, only_japanese=True)) <= 10


@pytest.mark.parametrize("change", ["swap", "drop", "double", "wrong"])
def test_each_typo_in_a_long_tag_is_forgiven(change):
    name = "school uniform"
    index = TypoIndex(TagIndex(TAGS))
    for place in range(1, len(name) - 1):
        head, letter, after, tail = name[:place], name[place], name[place + 1], name[place + 2 :]
        changed = {"swap": after + letter, "drop": after, "double": letter * 2 + after, "wrong": "q" + after}
        query = f"{head}{changed[change]}{tail}"
        if query != name:
            assert (10, 1) in index.find_similar(query.encode(), 10), query
