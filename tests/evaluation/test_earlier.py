import math
from pathlib import Path

import pytest

from medseg.errors import EvaluationError
from medseg.evaluation.comparison import read_metrics_csv


def test_an_earlier_table_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("case,label,dice,other\nc1,a,0.5,x\nc2,a,,y\n")
    table = read_metrics_csv(path)
    assert table["c1", "a"] == {"dice": 0.5}
    assert math.isnan(table["c2", "a"]["dice"])
    path.write_text("case,label,dice\nc1,a,good\n")
    with pytest.raises(EvaluationError, match="line 2"):
        read_metrics_csv(path)
    path.write_text("name,dice\nc1,0.5\n")
    with pytest.raises(EvaluationError, match="needs the columns case, label"):
        read_metrics_csv(path)
