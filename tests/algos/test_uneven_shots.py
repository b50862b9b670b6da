"""Episodes with padding rows: predictions and losses are the same as without the padding."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import random_episodes
from small_training import CPU, train_settings
from test_every_algorithm import NAMES, made

from fsl_cli.algos.common.algorithm import Algorithm, check_masks
from fsl_cli.episodes import Episodes, Examples, Task
from fsl_cli.errors import FslError
from fsl_cli.evaluation import evaluate
from fsl_cli.training import Training

EXACT = {"rtol": 1e-9, "atol": 1e-10}
REFUSE = {"metaoptnet", "mann", "ntm", "dnc", "snail"}
VARIANTS = [
    *((name, "", True) for name in NAMES if name not in {*REFUSE, "reptile"}),
    ("reptile", "inner_batch=null", True),
    ("nearest", "compare=image", True),
    ("protonet", "batch_norm=transductive", True),
    ("maml", "batch_norm=inductive", True),
    *((name, "", False) for name in ("maml", "anil", "imaml", "proto_maml", "meta_lstm")),  # all tasks at once
]
EPISODES = random_episodes(ways=3, shots=3, queries=3, size=12)


def filled_up(examples: Examples, rows: list[int], seed: int) -> Examples:
    """The examples with padding at ``rows``: large noise with wrong labels."""
    generator = torch.Generator().manual_seed(seed)
    count = examples.y.shape[1] + len(rows)
    mask = torch.ones(len(examples.y), count, dtype=torch.bool)
    mask[:, rows] = False
    x = 100 * torch.randn(*mask.shape, *examples.x.shape[2:], generator=generator, dtype=torch.float64)
    y = torch.randint(3, mask.shape, generator=generator)
    x[mask], y[mask] = examples.x.flatten(0, 1), examples.y.flatten()
    return Examples(x, y, mask)


def uneven(episodes: Episodes) -> Episodes:
    return Episodes(
        filled_up(episodes.support, [0, 4, 9], 1),
        filled_up(episodes.query, [1, 10], 2),
        episodes.problem,
        episodes.seeds,
        episodes.classes,
    )


def algorithm_of(name: str, option: str = "", engine: str = "auto", *, batch_norm: bool = True) -> Algorithm:
    algorithm, _ = made(name, 0, *option.split(), engine=engine, batch_norm=batch_norm)
    return algorithm.double()


@pytest.mark.parametrize(("name", "option", "batch_norm"), VARIANTS)
def test_rows_that_are_no_examples_change_nothing(name, option, batch_norm):
    algorithm = algorithm_of(name, option, batch_norm=batch_norm)
    episodes = Episodes(EPISODES.support, EPISODES.query, EPISODES.problem, EPISODES.seeds, torch.arange(9).view(3, 3))
    changed = uneven(episodes)
    check_masks(algorithm, changed)
    other = copy.deepcopy(algorithm)
    one, two = algorithm.loss(episodes), other.loss(changed)
    torch.testing.assert_close(two.loss, one.loss, **EXACT)
    if one.loss.requires_grad:
        one.loss.backward()
        two.loss.backward()
        for (key, each), same in zip(algorithm.named_parameters(), other.parameters(), strict=True):
            if each.grad is not None:
                torch.testing.assert_close(same.grad, each.grad, msg=key, **EXACT)
    for state, same in zip(algorithm.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(same, state, **EXACT)
    predicted = other.predict(changed)[changed.query.mask].view(3, 9, 3)
    torch.testing.assert_close(predicted, algorithm.predict(episodes), **EXACT)
    scores, expected = other.score(changed), algorithm.score(episodes)
    for key, values in expected.items():
        torch.testing.assert_close(scores[key], values, **EXACT)


@pytest.mark.parametrize("name", sorted({*REFUSE, "reptile"}))
def test_an_algorithm_that_would_learn_from_them_refuses(name):
    with pytest.raises(FslError, match="cannot be given episodes of uneven shots"):
        check_masks(algorithm_of(name), uneven(EPISODES))


def test_training_and_evaluation_refuse_for_it():
    class Uneven:
        task, problem = Task(3, 3, 3), EPISODES.problem

        def batch(self, first: int, count: int) -> Episodes:
            return uneven(EPISODES)

    algorithm = algorithm_of("metaoptnet")
    optimizer = torch.optim.SGD(algorithm.parameters(), 0.1)
    with pytest.raises(FslError, match="MetaOptNet cannot be given episodes of uneven shots"):
        Training(algorithm, optimizer, Uneven(), train_settings(meta_batch=3), CPU).step()
    with pytest.raises(FslError, match="MetaOptNet cannot be given episodes of uneven shots"):
        evaluate(algorithm, Uneven(), 3, CPU)


@pytest.mark.parametrize("engine", ["fast", "vmap"])
def test_batch_normalisation_of_all_tasks_at_once_refuses(engine):
    with pytest.raises(FslError, match="must be run one after the other"):
        algorithm_of("maml", engine=engine).loss(uneven(EPISODES))


@pytest.mark.parametrize("engine", ["fast", "vmap", "loop", "learn2learn"])
def test_engines_agree_on_uneven_shots(engine):
    reference, algorithm = (algorithm_of("maml", engine=each, batch_norm=False) for each in ("loop", engine))
    losses = []
    for each in (reference, algorithm):
        torch.nn.init.normal_(each.net.head.weight, generator=torch.Generator().manual_seed(0))
        losses.append(each.loss(uneven(EPISODES)).loss)
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0], **EXACT)
    for one, other in zip(reference.parameters(), algorithm.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, **EXACT)
