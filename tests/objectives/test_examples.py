from __future__ import annotations

import pytest

from lit_align.objectives import Mean, Sum
from lit_align.objectives.examples import worked_pair


def test_the_table_in_the_docstring() -> None:
    pair = worked_pair()
    assert pair.reference is not None
    assert pair.prompted is not None
    assert pair.prompted.reference is not None
    assert pair.lengths.tolist() == [[10.0, 40.0]]
    for values, totals, means in [
        (pair.policy, (-20, -60), (-2, -1.5)),
        (pair.reference, (-25, -58), (-2.5, -1.45)),
        (pair.policy - pair.reference, (5, -2), (0.5, -0.05)),
        (pair.prompted.policy - pair.prompted.reference, (3, 0), (0.3, 0)),
    ]:
        assert Sum()(values, pair.mask)[0].tolist() == pytest.approx(totals, abs=1e-5)
        assert Mean()(values, pair.mask)[0].tolist() == pytest.approx(means, abs=1e-6)
    assert not pair.policy[~pair.mask].any()
