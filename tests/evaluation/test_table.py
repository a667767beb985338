"""Tables of scores as plain text."""

from vlkd_pl.evaluation.table import format_table, score_table


def test_missing_scores_are_blank_and_names_are_never_cut():
    name = f"runs/[red]/{'long/' * 30}"
    lines = format_table([name, "b"], [{"BLEU-4": 0.5, "CIDEr": 1}, {"CIDEr": 2}]).splitlines()
    assert lines[0].split() == [name, "b"]
    assert [line.split() for line in lines[1:]] == [["BLEU-4", "0.500"], ["CIDEr", "1.000", "2.000"]]
    assert len(set(map(len, lines))) == 1


def test_scores_of_both_units():
    heading, _, *rows = score_table(
        ["x"], [{"off_prompt": 0.25, "accuracy/all": 50.0}], {"off_prompt": "fraction", "accuracy/all": "percent"}
    ).splitlines()
    assert heading == "in percent (JSON files name the units)"
    assert [row.split() for row in rows] == [["off_prompt", "25.0"], ["accuracy/all", "50.0"]]
