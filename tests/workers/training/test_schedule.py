import pytest

from workers.training.schedule import learning_rate, progress_of


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", {0.05: 0.5, 0.1: 1.0, 0.55: 0.5, 1.0: 0.01}),
        ("cosine", {0.05: 0.5, 0.1: 1.0, 0.55: 0.5, 1.0: 0.01}),
        ("wsd", {0.05: 0.5, 0.1: 1.0, 0.55: 1.0, 0.91: 0.5, 1.0: 0.01}),
        ("constant", {0.05: 0.5, 0.1: 1.0, 0.55: 1.0, 1.0: 1.0}),
    ],
)
def test_the_rate_rises_and_falls_as_its_schedule_says(schedule, expected):
    for progress, rate in expected.items():
        assert learning_rate(2.0, progress, 0.1, schedule) == pytest.approx(2.0 * rate)


def test_a_run_with_minutes_follows_the_clock_and_one_with_steps_its_steps():
    assert progress_of(step=900, elapsed_seconds=30, steps=None, minutes=2) == 0.25
    assert progress_of(step=900, elapsed_seconds=300, steps=None, minutes=2) == 1.0
    assert progress_of(step=3, elapsed_seconds=300, steps=12, minutes=None) == 0.25
