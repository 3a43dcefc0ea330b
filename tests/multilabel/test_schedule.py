"""The learning rate against torch's schedulers where they coincide, and at its corners."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, LambdaLR

from lightning_modules.multilabel.schedule import learning_rate_factor, rate_schedule

LR, LOW = 2e-4, 1e-6


def rates(make_scheduler, steps):
    """The learning rate of each optimiser step."""
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    scheduler = make_scheduler(optimiser)
    found = []
    for _ in range(steps):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("steps", [2, 7, 100])
def test_cosine_without_warm_up_is_torchs(steps):
    ours = rates(lambda o: LambdaLR(o, lambda step: learning_rate_factor(step, steps, floor=LOW / LR)), steps)
    theirs = rates(lambda o: CosineAnnealingLR(o, T_max=steps - 1, eta_min=LOW), steps)
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert (ours[0], ours[-1]) == pytest.approx((LR, LOW))


@pytest.mark.parametrize(("per_epoch", "epochs", "factor"), [(1, 5, 2), (7, 2, 2), (3, 4, 1), (2, 1, 3)])
def test_restarts_without_warm_up_are_torchs(per_epoch, epochs, factor):
    steps = 20 * per_epoch

    def ours(step):
        return learning_rate_factor(step, steps, 0, "warm_restarts", per_epoch, epochs, factor, LOW / LR)

    theirs = rates(lambda o: CosineAnnealingWarmRestarts(o, T_0=epochs * per_epoch, T_mult=factor, eta_min=LOW), steps)
    assert rates(lambda o: LambdaLR(o, ours), steps) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("schedule", ["cosine", "warm_restarts"])
@pytest.mark.parametrize("warmup", [1, 2, 5, 30])
def test_the_warm_up_happens_and_the_schedule_follows(schedule, warmup):
    def factor(step):
        return learning_rate_factor(step, 60, warmup, schedule, steps_per_epoch=4, floor=0.01)

    found = [factor(step) for step in range(60)]
    assert found[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    assert max(found) == found[warmup - 1] == 1
    after = found[warmup - (schedule == "cosine") :]  # whole periods of warm restarts follow the whole warm-up
    plain = [
        learning_rate_factor(step, len(after), 0, schedule, steps_per_epoch=4, floor=0.01) for step in range(len(after))
    ]
    assert after == pytest.approx(plain)
    if schedule == "cosine":
        assert after == sorted(after, reverse=True)
        assert after[-1] == pytest.approx(0.01)
        assert factor(1000) == pytest.approx(0.01)
    else:
        assert factor(warmup) == 1
        assert factor(warmup + 20) == 1  # restart after 5 epochs of 4 steps, and 10 epochs later
        assert factor(warmup + 60) == 1
        assert factor(warmup + 19) == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi * 19 / 20)) / 2)


def test_a_run_of_a_warm_up_and_whole_periods_ends_at_the_floor():
    """As ``method/warm_restarts.yaml``: one epoch of warm-up, then 5 + 10, of 27 steps each."""
    factor = rate_schedule(16 * 27, 27, 1.0, schedule="warm_restarts", restart_epochs=5, restart_factor=2, floor=0.005)
    assert [factor(27 * epoch) for epoch in (1, 6, 16)] == [1, 1, 1]
    assert [factor(27 * epoch - 1) for epoch in (6, 16)] == pytest.approx([0.005, 0.005], abs=2e-4)


def test_short_runs():
    assert learning_rate_factor(0, 1) == 1
    assert [learning_rate_factor(step, 2, warmup_steps=2) for step in range(2)] == [0.5, 1]
    assert [learning_rate_factor(step, 2, warmup_steps=4) for step in range(2)] == [0.25, 0.5]
    assert [learning_rate_factor(step, 3, warmup_steps=2, floor=0.1) for step in range(3)] == [0.5, 1, 0.1]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="schedule is 'linear'; known are 'cosine' and 'warm_restarts'"):
        learning_rate_factor(0, 10, schedule="linear")
    with pytest.raises(ValueError, match=r"total_steps -1.*set trainer\.max_epochs"):
        learning_rate_factor(0, -1)
    with pytest.raises(ValueError, match="floor is 2"):
        learning_rate_factor(0, 10, floor=2)
    for broken in ({"restart_epochs": 0}, {"restart_factor": 0}, {"restart_factor": 1.5}, {"steps_per_epoch": 0}):
        with pytest.raises(ValueError, match="whole numbers of at least 1"):
            learning_rate_factor(0, 10, schedule="warm_restarts", **broken)
