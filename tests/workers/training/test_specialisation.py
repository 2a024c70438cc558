import numpy as np
import pytest
from scipy.stats import entropy

from workers.training.specialisation import Choices, expert_shares, information, mutual_information

GENERATOR = np.random.default_rng(7)


def choices(counts: np.ndarray, domain: np.ndarray) -> Choices:
    return Choices([f"domain {n}" for n in range(domain.max() + 1)], domain, counts)


def test_mutual_information_is_the_divergence_of_the_joint_from_the_product_of_its_margins():
    tables = GENERATOR.integers(0, 30, (6, 5, 8))
    for table, bits in zip(tables, mutual_information(tables), strict=True):
        product = np.outer(table.sum(1), table.sum(0))
        assert bits == pytest.approx(entropy(table.ravel(), product.ravel(), base=2), abs=1e-12)


def test_experts_that_know_nothing_of_domains_lie_within_chance():
    domain = np.repeat(np.arange(10), 16)
    # Each sentence has a liking of its own, as words have: chance is far from zero, and a bare estimate would claim a finding.
    counts = np.stack([GENERATOR.multinomial(25, GENERATOR.dirichlet(np.ones(8))) for _ in domain])[None]
    (layer,) = information(choices(counts, domain))["layers"]
    assert layer["chance"] > 0.03
    assert abs(layer["bits"] - layer["chance"]) < 3 * (layer["chance_high"] - layer["chance"])
    assert abs(layer["share"]) < 0.05


def test_an_expert_for_each_domain_tells_all_of_it():
    domain = np.repeat(np.arange(8), 16)
    counts = (25 * (domain[:, None] == np.arange(8)))[None]
    found = information(choices(counts, domain))
    assert found["domain_entropy"] == pytest.approx(3.0)
    assert found["layers"][0]["bits"] == pytest.approx(3.0) and found["layers"][0]["share"] == pytest.approx(1.0)


def test_shares_of_experts_sum_to_one_for_each_domain():
    domain = np.repeat(np.arange(3), 4)
    counts = GENERATOR.integers(0, 9, (2, 12, 5))
    shares = np.array(expert_shares(choices(counts, domain)))
    assert shares.shape == (2, 5, 3)
    np.testing.assert_allclose(shares.sum(1), 1.0, atol=1e-3)
    np.testing.assert_allclose(shares[1, :, 2], counts[1, 8:].sum(0) / counts[1, 8:].sum(), atol=1e-4)
