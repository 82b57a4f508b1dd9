import pytest

from madclip.benchmark.published import _numbers, published
from madclip.benchmark.registry import registered
from madclip.errors import RecipeError


def test_numbers_of_each_table():
    assert published("table1", "HIS", "MadCLIP", 16, "AC") == 90.14
    assert published("table2", "brainmri", "april-gan", 4, "AS") == 94.67
    assert published("table3", "RESC->OCTDL", "MVFA", 16, "AC") == 87.94
    assert published("ablations", "Average", "f", None, "AS") == 3.41


def test_what_the_paper_does_not_report_is_none():
    assert published("table1", "HIS", "BGAD", 16, "AC") is None
    assert published("table1", "HIS", "MadCLIP", 16, "AS") is None
    assert published("table1", "HIS", "logistic", 16, "AC") is None
    assert published("table2", "HIS", "MadCLIP", 3, "AC") is None


def test_an_unknown_table_or_metric_is_an_error():
    with pytest.raises(RecipeError, match="table9"):
        published("table9", "HIS", "MadCLIP", 16, "AC")
    with pytest.raises(RecipeError, match="auroc"):
        published("table1", "HIS", "MadCLIP", 16, "auroc")


def test_tables_are_about_registered_sets_and_their_tasks():
    for table, name, _, _, metric in _numbers():
        if name != "average":
            sets = [registered(part) for part in name.split("->")]
            assert len(sets) == (2 if table == "table3" else 1)
            assert all(metric in entry.tasks for entry in sets)


@pytest.mark.parametrize("metric", ["AC", "AS"])
def test_averages_are_those_of_the_sets(metric):
    averages = {key: value for key, value in _numbers().items() if key[0] != "ablations" and key[1] == "average"}
    checked = 0
    for (table, _, method, shots, kind), average in averages.items():
        mine = [value for key, value in _numbers().items() if (key[0], *key[2:]) == (table, method, shots, kind)]
        if kind == metric and len(mine) > 1:
            own = (sum(mine) - average) / (len(mine) - 1)
            assert average == pytest.approx(own, abs=0.02), (table, method, shots)
            checked += 1
    assert checked > 20
