"""Which steps are trained on, and what their losses weigh."""

from __future__ import annotations

import torch

from diffusion.schedule import make_betas, noise_angles
from diffusion.timesteps import AngleTimesteps, LossAwareTimesteps, UniformTimesteps, VisitedTimesteps


def learnt(steps: int) -> LossAwareTimesteps:
    timesteps = LossAwareTimesteps(steps)
    for step in range(steps):
        timesteps.note(torch.full((10,), step), torch.full((10,), float(step + 1)))
    return timesteps


def test_every_step_is_as_likely_until_each_was_seen_ten_times():
    timesteps = LossAwareTimesteps(4)
    timesteps.note(torch.tensor([0] * 10 + [1] * 10 + [2] * 10 + [3] * 9), torch.ones(39) * 5)
    assert torch.equal(timesteps.shares(), UniformTimesteps(4).shares())
    timesteps.note(torch.tensor([3]), torch.tensor([50.0]))
    assert timesteps.shares()[3] > timesteps.shares()[0]


def test_steps_come_in_proportion_to_their_root_mean_square_loss():
    shares = learnt(4).shares()
    expected = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64) * 0.999 + 0.00025
    torch.testing.assert_close(shares, expected)


def test_only_the_last_ten_losses_count():
    timesteps = learnt(2)
    timesteps.note(torch.zeros(10, dtype=torch.int64), torch.full((10,), 2.0))
    torch.testing.assert_close(timesteps.shares(), UniformTimesteps(2).shares())


def test_weights_undo_the_choice():
    timesteps, rng = learnt(8), torch.Generator().manual_seed(0)
    t, weights = timesteps.draw(40_000, rng=rng)
    assert abs(float((weights * t).mean()) - 3.5) < 0.05
    t, weights = UniformTimesteps(8).draw(5, rng=rng)
    assert torch.equal(weights, torch.ones(5))


def test_steps_come_evenly_in_the_angle_and_weigh_alike():
    angles = noise_angles(make_betas("cosine", 1000), data_std=0.1)
    t, weights = AngleTimesteps(angles).draw(20_000, rng=torch.Generator().manual_seed(0))
    low, middle, high = (float(((angles[t] > a) & (angles[t] <= a + 0.4)).double().mean()) for a in (0.1, 0.5, 0.9))
    assert max(low, middle, high) < 1.1 * min(low, middle, high)
    assert torch.equal(weights, torch.ones(20_000))


def test_the_history_is_part_of_the_state():
    restored = LossAwareTimesteps(4)
    restored.load_state_dict(learnt(4).state_dict())
    assert torch.equal(restored.shares(), learnt(4).shares())


def test_only_the_steps_that_sampling_visits_are_trained_on():
    timesteps = VisitedTimesteps((0, 60, 999), 1000)
    t, weights = timesteps.draw(300, rng=torch.Generator().manual_seed(0))
    assert set(t.tolist()) == {0, 60, 999}
    assert min(t.tolist().count(step) for step in (0, 60, 999)) > 80
    assert torch.equal(weights, torch.ones(300))
