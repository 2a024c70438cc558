import json

import pytest

from workers.moe.config import PRESETS
from workers.moe.parameters import PRESETS_FILE, count_parameters, describe_presets


def test_presets_file_says_what_is_counted_on_the_meta_device():
    assert json.loads(PRESETS_FILE.read_text()) == describe_presets(), "run python -m workers.moe.parameters"


def test_largest_preset_has_128_billion_parameters_of_which_16_are_active():
    total, active = count_parameters(PRESETS["moe-128b-a16b"])
    assert total == pytest.approx(128e9, rel=0.02)
    assert active == pytest.approx(16e9, rel=0.02)


def test_dense_twins_are_of_equal_total_size():
    for row in describe_presets():
        assert row["dense_twin"]["total_parameters"] == pytest.approx(row["total_parameters"], rel=0.01)


def test_a_configuration_that_no_architecture_can_store_is_refused():
    with pytest.raises(ValueError, match="n_shared_experts = 1"):
        PRESETS["nano"].with_(n_shared_experts=1)
