import pytest

from workers.training.pace import Pace

STEPS = 1000


def told_at_a_tenth(seconds_of_step) -> tuple[float, float]:
    """The time left that was told after a tenth of the steps, heard of at every fifth one, and the real one."""
    pace, elapsed, told = Pace(), 0.0, 0.0
    for step in range(1, STEPS + 1):
        elapsed += seconds_of_step(step)
        if step <= STEPS // 10 and step % 5 == 0:
            told = pace.seconds_left(step / STEPS, elapsed)
    return told, sum(seconds_of_step(step) for step in range(STEPS // 10 + 1, STEPS + 1))


@pytest.mark.parametrize("slow_steps", [0, 20, 50])
def test_slow_first_steps_do_not_spoil_the_time_left(slow_steps):
    told, real = told_at_a_tenth(lambda step: 0.6 if step <= slow_steps else 0.1)

    assert told == pytest.approx(real, rel=0.2)


def test_a_run_that_goes_back_is_heard_from_there():
    pace = Pace()
    for step in range(1, 51):
        pace.seconds_left(step / 100, float(step))

    assert pace.seconds_left(0.30, 52.0) > 0
    assert pace.seconds_left(1.0, 122.0) == 0
