from __future__ import annotations

import pytest

from nnunet_ssp.study.published import read_published

MODELS = ("baseline", "SimCLR", "PCL", "DINO", "MIM")
TABLE_1 = """
all  0.89 ± 0.001  0.89 ± 0.002  0.89 ± 0.003  0.89 ± 0.001  0.89 ± 0.001
50   0.87 ± 0.007  0.87 ± 0.011  0.88 ± 0.005  0.87 ± 0.006  0.88 ± 0.006
25   0.86 ± 0.003  0.86 ± 0.014  0.85 ± 0.014  0.84 ± 0.002  0.87 ± 0.007
15   0.84 ± 0.007  0.83 ± 0.024  0.85 ± 0.009  0.79 ± 0.009  0.86 ± 0.015
10   0.82 ± 0.009  0.80 ± 0.024  0.84 ± 0.009  0.74 ± 0.022  0.86 ± 0.007
"""
TABLE_2 = """
baseline/ED  0.88 ± 0.001  0.90 ± 0.002  0.86 ± 0.002
MIM/ED       0.89 ± 0.001  0.90 ± 0.001  0.87 ± 0.001
baseline/ES  0.88 ± 0.007  0.88 ± 0.012  0.88 ± 0.002
MIM/ES       0.88 ± 0.001  0.88 ± 0.001  0.89 ± 0.000
"""
TABLE_3 = """
baseline/A+B  0.89 ± 0.001  0.89 ± 0.001  0.88 ± 0.002
MIM/A+B       0.89 ± 0.001  0.89 ± 0.001  0.88 ± 0.000
baseline/C+D  0.88 ± 0.002  0.87 ± 0.001  0.89 ± 0.004
MIM/C+D       0.88 ± 0.001  0.88 ± 0.002  0.89 ± 0.002
"""
TABLE_4 = """
baseline                   0.90 ± 0.001  0.88 ± 0.003  0.89 ± 0.001  0.89 ± 0.006
baseline, no augmentation  0.71 ± 0.042  0.66 ± 0.036  0.72 ± 0.036  0.61 ± 0.049
"""
APPENDIX_B = """
LV   0.93 ± 0.047  0.93 ± 0.047  0.93 ± 0.048  0.93 ± 0.048  0.93 ± 0.048
MYO  0.85 ± 0.055  0.85 ± 0.048  0.85 ± 0.052  0.85 ± 0.052  0.85 ± 0.053
RV   0.90 ± 0.062  0.90 ± 0.064  0.90 ± 0.061  0.90 ± 0.068  0.90 ± 0.068
"""


def lines(text: str, columns: tuple[str, ...]):
    for line in text.strip().splitlines():
        name, *numbers = (part.strip() for part in line.split("  ") if part.strip())
        for column, number in zip(columns, numbers, strict=True):
            yield name, column, number


def test_the_numbers_are_the_papers():
    read = {
        name: {place: str(number) for place, number in read_published(f"demooij/{name}").items()}
        for name in ("table1", "table2", "table3", "table4", "appendixB")
    }
    assert read["table1"] == {
        (model, fold, "all", "mean"): text for fold, model, text in lines(TABLE_1, MODELS)
    }
    for name, text, tests in (
        ("table2", TABLE_2, ("all", "ED", "ES")),
        ("table3", TABLE_3, ("all", "A+B", "C+D")),
    ):
        assert read[name] == {
            (*row.split("/"), test, "mean"): number for row, test, number in lines(text, tests)
        }
    # Numbers of the text, on all test subjects.
    assert read["table4"] == {
        (model, "all", test, "mean"): number
        for model, test, number in lines(TABLE_4, ("ED", "ES", "A+B", "C+D"))
    } | {
        ("baseline", "all", "all", "mean"): "0.89",
        ("baseline, no augmentation", "all", "all", "mean"): "0.69 ± 0.039",
        ("MIM, no augmentation", "all", "all", "mean"): "0.78 ± 0.040",
    }
    assert read["appendixB"] == {
        (model, "all", "all", name): text for name, model, text in lines(APPENDIX_B, MODELS)
    }


def test_every_number_has_its_source_and_inferred_columns_are_marked():
    for table, inferred in (("table1", 0), ("table2", 12), ("table3", 0), ("table4", 8)):
        numbers = read_published(f"demooij/{table}").values()
        assert all("arXiv 2409.18100, " in number.source for number in numbers)
        assert sum(number.note == "column heads inferred" for number in numbers) == inferred


@pytest.mark.parametrize("name", ["demooij/table9", "demooij", "other/table1", "../demooij/table1"])
def test_other_tables_are_refused(name):
    with pytest.raises(ValueError, match=r"must be one of demooij/table1, demooij/table2, .*B\."):
        read_published(name)
