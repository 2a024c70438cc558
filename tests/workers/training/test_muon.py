import torch

from workers.training.muon import Muon, all_orthogonalized, orthogonalized


def test_a_matrix_becomes_nearly_the_orthogonal_factor_of_its_singular_value_decomposition():
    matrix = torch.randn(48, 96, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)

    made = orthogonalized(matrix)

    values = torch.linalg.svdvals(made)
    assert values.min() > 0.6 and values.max() < 1.3
    assert torch.nn.functional.cosine_similarity(made.flatten(), (u @ vt).flatten(), dim=0) > 0.97


def test_tall_matrices_and_stacks_are_made_orthogonal_each_by_itself():
    stack = torch.randn(3, 64, 16, generator=torch.Generator().manual_seed(1))

    together = orthogonalized(stack)

    for one, made in zip(stack, together, strict=True):
        torch.testing.assert_close(made, orthogonalized(one), atol=2e-2, rtol=0)  # bfloat16 products, summed in another order
        assert torch.linalg.svdvals(made).min() > 0.6


def test_stacks_of_one_shape_and_of_its_transpose_are_made_together_as_alone():
    generator = torch.Generator().manual_seed(4)
    stacks = [torch.randn(shape, generator=generator) for shape in ((3, 64, 16), (16, 64), (24, 24), (2, 16, 64))]

    for one, made in zip(stacks, all_orthogonalized(stacks), strict=True):
        assert made.shape == one.shape
        torch.testing.assert_close(made.float(), orthogonalized(one), atol=2e-2, rtol=0)


def test_what_is_no_matrix_goes_by_adamw():
    torch.manual_seed(2)
    ours, theirs = torch.nn.Parameter(torch.randn(40)), torch.nn.Parameter(torch.zeros(40))
    theirs.data.copy_(ours.data)
    muon = Muon([{"params": [ours], "muon": False, "weight_decay": 0.1}], lr=1e-2, betas=(0.9, 0.99))
    adamw = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)

    for _ in range(5):
        gradient = torch.randn(40)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon.step()
        adamw.step()

    torch.testing.assert_close(ours, theirs)


def test_a_step_moves_every_direction_of_a_matrix_by_about_the_learning_rate():
    torch.manual_seed(3)
    weight = torch.nn.Parameter(torch.zeros(32, 32))
    # One direction a thousand times stronger than another: AdamW's update would be all but that one.
    weight.grad = torch.diag(torch.logspace(0, -3, 32))
    Muon([{"params": [weight], "muon": True}], lr=0.1).step()

    values = torch.linalg.svdvals(weight.detach())
    assert values.max() < 0.13 and values.median() > 0.05
