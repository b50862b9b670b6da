"""Intervals against scipy and against simulation; metrics against slow loops."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from fsl_cli.statistics import classification as metrics
from fsl_cli.statistics.intervals import MeanInterval, t_interval


@pytest.mark.parametrize("n", [2, 3, 10, 1000])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_t_interval_is_scipys(n, level):
    values = np.random.default_rng(n).beta(5, 2, n)
    mine = t_interval(values, level)
    low, high = stats.t.interval(level, df=n - 1, loc=values.mean(), scale=stats.sem(values))
    assert mine.mean - mine.ci95 == pytest.approx(low, rel=1e-12)
    assert mine.mean + mine.ci95 == pytest.approx(high, rel=1e-12)
    assert (mine.n, mine.method) == (n, "t")


def test_t_interval_by_hand():
    """Five values; 2.776445 is t(0.975, 4) of any printed table, the sample standard deviation is sqrt(2.5)."""
    mine = t_interval([1, 2, 3, 4, 5])
    assert mine.mean == 3
    assert mine.ci95 == pytest.approx(2.776445 * math.sqrt(2.5) / math.sqrt(5), rel=1e-6)


def test_95_percent_is_the_default_level():
    values = np.random.default_rng(0).random(20)
    assert t_interval(values) == t_interval(values, 0.95)


def test_t_interval_covers_the_mean_of_small_normal_samples_95_times_in_100():
    """4,000 samples of 5: a z interval would cover 88%, ddof=0 about 92%."""
    samples = np.random.default_rng(7).normal(0.7, 0.2, (4000, 5))
    intervals = [t_interval(sample) for sample in samples]
    covered = sum(abs(each.mean - 0.7) <= each.ci95 for each in intervals)
    assert stats.binomtest(covered, 4000, 0.95).pvalue > 1e-3


def test_one_value_has_a_mean_and_no_interval():
    mine = t_interval([0.25])
    assert (mine.mean, mine.n) == (0.25, 1)
    assert math.isnan(mine.ci95)


def test_equal_values_have_an_interval_of_width_zero():
    assert t_interval([0.5] * 10) == MeanInterval(0.5, 0.0, 10, "t")


def test_no_values_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        t_interval([])


def test_any_array_type_is_accepted():
    values = [0.1, 0.4, 0.35]
    arrays = [values, tuple(values), np.array(values), torch.tensor(values, dtype=torch.float64)]
    assert len({t_interval(each) for each in arrays}) == 1


def test_as_dict_is_plain_json():
    content = t_interval(np.arange(4, dtype=np.float32)).as_dict()
    assert json.loads(json.dumps(content)) == content
    assert set(content) == {"mean", "ci95", "n", "method"}


def random_logits(tasks: int = 6, queries: int = 8, ways: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(tasks, queries, ways, generator=generator, dtype=torch.float64)
    return logits, torch.randint(ways, (tasks, queries), generator=generator)


def test_accuracy_is_the_share_of_correct_queries_of_each_episode():
    logits, labels = random_logits()
    expected = []
    for task in range(6):
        right = 0
        for query in range(8):
            row = logits[task, query].tolist()
            right += row.index(max(row)) == labels[task, query].item()
        expected.append(right / 8)
    assert metrics.accuracy(logits, labels).tolist() == expected
    assert len(set(expected)) > 2


def test_accuracy_of_right_and_wrong_predictions():
    labels = torch.tensor([[0, 1, 2]])
    assert metrics.accuracy(torch.eye(3)[None], labels).tolist() == [1.0]
    assert metrics.accuracy(torch.eye(3)[None], labels.roll(1, 1)).tolist() == [0.0]


def test_cross_entropy_is_the_mean_negative_log_probability_of_each_episode():
    logits, labels = random_logits()
    expected = []
    for task in range(6):
        total = 0.0
        for query in range(8):
            exponentials = [math.exp(value) for value in logits[task, query].tolist()]
            total -= math.log(exponentials[labels[task, query]] / sum(exponentials))
        expected.append(total / 8)
    assert metrics.cross_entropy(logits, labels).tolist() == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_of_even_logits_is_log_n():
    assert metrics.cross_entropy(torch.zeros(2, 5, 20), torch.zeros(2, 5, dtype=torch.long)).tolist() == pytest.approx(
        [math.log(20)] * 2
    )


def test_cross_entropy_is_differentiable_and_its_gradient_is_softmax_minus_one_hot():
    logits, labels = random_logits()
    logits.requires_grad_()
    metrics.cross_entropy(logits, labels).sum().backward()
    expected = (logits.softmax(-1) - torch.nn.functional.one_hot(labels, 4)) / 8
    torch.testing.assert_close(logits.grad, expected.detach())
