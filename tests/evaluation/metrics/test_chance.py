import itertools

import numpy as np
import pytest

from evaluation.metrics.chance import chance_average_precision
from evaluation.metrics.ranks import average_precision


@pytest.mark.parametrize(("num_matches", "num_gallery"), [(1, 1), (1, 2), (2, 2), (1, 4), (2, 5), (5, 5)])
def test_the_chance_of_average_precision_is_its_mean_over_all_orders(num_matches, num_gallery):
    orders = itertools.combinations(range(1, num_gallery + 1), num_matches)
    precisions = [average_precision(np.array(ranks)) for ranks in orders]
    assert chance_average_precision(num_matches, num_gallery) == pytest.approx(sum(precisions) / len(precisions))


@pytest.mark.parametrize(("num_matches", "num_gallery"), [(3, 2), (0, 2), (2, 1)])
def test_matches_outside_the_gallery_are_an_error(num_matches, num_gallery):
    message = f"^there are {num_matches} matches in a gallery of {num_gallery}; give 1 to {num_gallery}$"
    with pytest.raises(ValueError, match=message):
        chance_average_precision(num_matches, num_gallery)
