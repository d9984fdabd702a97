"""Every metric hands its number of threads and its block size on to the search or the ranking behind it."""

import numpy as np
import pytest

from evaluation.metrics import classes, knn, landmarks, retrieval
from evaluation.sets.revisited import QueryTruth

ROWS, LABELS = np.eye(3, dtype=np.float32), np.arange(3)
TRUTHS = [QueryTruth(easy=(0,), hard=(), junk=(), box=(0, 0, 1, 1))] * 3
BOTH = {"num_threads": 3, "block_rows": 7}
THREADS = {"num_threads": 3}


@pytest.mark.parametrize(
    ("behind", "metric", "settings"),
    [
        ("knn.nearest", lambda **given: knn.knn_predictions(ROWS, LABELS, ROWS, ks=(1,), **given), BOTH),
        ("retrieval.target_ranks", lambda **given: retrieval.retrieval_metrics(ROWS, LABELS, **given), BOTH),
        (
            "retrieval.target_ranks",
            lambda **given: retrieval.retrieval_ranks(ROWS, ROWS, LABELS, **given),
            THREADS,
        ),
        (
            "landmarks.target_ranks",
            lambda **given: landmarks.revisited_metrics(ROWS, ROWS, TRUTHS, **given),
            BOTH,
        ),
        (
            "landmarks.target_ranks",
            lambda **given: landmarks.gpr1200_average_precisions(ROWS, LABELS, **given),
            THREADS,
        ),
        ("classes.target_ranks", lambda **given: classes.true_class_ranks(ROWS, LABELS, ROWS, **given), THREADS),
        (
            "classes.target_ranks",
            lambda **given: classes.class_average_precisions(ROWS, np.eye(3, dtype=bool), ROWS, **given),
            THREADS,
        ),
        (
            "classes.target_ranks",
            lambda **given: classes.class_ranks(ROWS, ROWS, [[0], [1], [2]], ["a", "b", "c"], **given),
            BOTH,
        ),
    ],
)
def test_threads_and_block_size_are_handed_on(behind, metric, settings, monkeypatch):
    module, name = {"knn": knn, "retrieval": retrieval, "landmarks": landmarks, "classes": classes}, behind.split(".")
    real, seen = getattr(module[name[0]], name[1]), []

    def noted(*arguments, **given):
        seen.append(given)
        return real(*arguments, **given)

    monkeypatch.setattr(module[name[0]], name[1], noted)
    metric(**settings)
    assert seen and all(one == settings for one in seen)
