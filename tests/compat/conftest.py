"""Every compatibility test runs natively, which proves the test, and protected."""

import pytest

from mwtest.box import Box
from mwtest.build import MODES


@pytest.fixture(params=MODES)
def box(request):
    with Box(request.param) as one:
        yield one
