import pytest
from pydantic import ValidationError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 5, "minutes": 1.0}, "either steps or minutes"),
        ({"steps": None}, "either steps or minutes"),
        ({"zero_stage": 2}, "world_size must be at least 2"),
        ({"model": None, "preset": "huge"}, "there is no preset 'huge'; there are nano"),
        ({"precision": "int8"}, "'fp32', 'bf16' or 'fp16'"),
        ({"accum_steps": 0}, "greater than or equal to 1"),
        ({"learning_rate": 1.0}, "Extra inputs are not permitted"),
    ],
)
def test_a_spec_that_cannot_be_meant_is_refused_and_says_why(make_spec, changes, message):
    with pytest.raises(ValidationError, match=message):
        make_spec(**changes)


def test_starting_a_child_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, workers.training, workers.training.launcher as l; l.command_line(2); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
