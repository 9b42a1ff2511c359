"""The control that keeps everything."""

import pytest

from tests.policies.fabricate import LAYOUTS, Sample, serve
from vtprune.policies.none import KeepAll


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_token_is_kept_as_it_is(layout):
    [(tokens, selection)] = serve(KeepAll(), Sample(layout))
    assert selection.keep.tolist() == list(range(len(tokens)))
    assert selection.merge is None
