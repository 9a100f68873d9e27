"""What the other tests compare numbers with notices what it should."""

import numpy as np
import pytest
import torch
from closeness import FORWARD, assert_near, difference


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_a_difference_is_a_share_of_the_largest_number(size: float) -> None:
    expected = size * torch.tensor([[1.0, -4.0], [0.0, 1e-3]])
    found = expected.clone()
    found[1, 0] += 4.0 * size * FORWARD / 2
    assert difference(found, expected) == pytest.approx(FORWARD / 2, rel=0.01)
    assert_near(found, expected)
    found[1, 0] += 4.0 * size * FORWARD
    with pytest.raises(AssertionError, match=r"logits differs by 3e-05 .* allowed are 2e-05"):
        assert_near(found, expected, name="logits")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_far_from_everything(bad: float) -> None:
    with pytest.raises(AssertionError, match="differs by inf"):
        assert_near(np.array([1.0, bad]), np.ones(2), share=1.0)


def test_nothing_is_compared_unseen() -> None:
    with pytest.raises(AssertionError, match="shapes"):
        assert_near(np.ones((2, 3)), np.ones(3))
    with pytest.raises(AssertionError, match="zeros have no scale"):
        assert_near(np.ones(3), np.zeros(3))
    with pytest.raises(AssertionError, match="differs"):
        assert_near(np.full(3, 1e-3), np.zeros(3), scale=1.0)
    assert_near(np.full(3, 1e-6), np.zeros(3), scale=1.0)
