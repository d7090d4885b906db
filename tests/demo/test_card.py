from demo.card import format_figures, format_mutations, replace_sections


def test_only_what_is_between_marks_is_renewed():
    page = "<!-- figures -->\n<!-- end of figures -->\nbefore\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n"
    once = replace_sections(page, {"figures": "| 1 |"})
    assert "old" not in once
    assert once.count("| 1 |") == 2
    assert "\nbefore\n" in once
    assert once.endswith("after\n")
    assert replace_sections(once, {"figures": "| 1 |"}) == once


def test_what_was_not_measured_is_left_open():
    said = format_figures({"512x512": {"hair": 0.95}, "quality": {"good is sharper": 0.9}, "machine": {}})
    assert "| hair | 0.95 | - | 0.93 |" in said
    assert "| quality | good is sharper: 0.9 |" in said


def test_a_mutation_that_no_test_noticed_is_told():
    assert "| sign | none |" in format_mutations({"sign": []})
