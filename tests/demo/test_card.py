from demo.card import format_figures, format_mutations, replace_sections


def test_only_text_between_markers_is_replaced():
    card = "<!-- figures -->\n<!-- end of figures -->\nbefore\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n"
    updated = replace_sections(card, {"figures": "| 1 |"})
    assert "old" not in updated
    assert updated.count("| 1 |") == 2
    assert "\nbefore\n" in updated
    assert updated.endswith("after\n")
    assert replace_sections(updated, {"figures": "| 1 |"}) == updated


def test_missing_results_are_shown_as_a_dash():
    table = format_figures({"512x512": {"hair": 0.95}, "quality": {"good is sharper": 0.9}, "machine": {}})
    assert "| hair | 0.95 | - | 0.93 |" in table
    assert "| quality | good is sharper: 0.9 |" in table


def test_an_undetected_mutation_is_listed():
    assert "| sign | none |" in format_mutations({"sign": []})
