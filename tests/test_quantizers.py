"""The contract of every quantizer in the table, and what is particular to SimVQ and its residual stack."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from codec.config import QuantizerConfig
from codec.quantizers import QUANTIZERS, ResidualSimVQ, SimVQ, build_quantizer
from codec.quantizers.search import nearest

DIM = 12
VARIANTS = {
    "frozen": {},
    "learnable": {"basis": "learnable"},
    "diagonal": {"map": "diagonal"},
    "no_bias": {"map_bias": False},
    "no_projection": {"codebook_dim": DIM},
}


def make(kind: str, variant: str = "frozen", **fields: object) -> SimVQ | ResidualSimVQ:
    torch.manual_seed(0)
    base = QuantizerConfig(kind=kind, num_quantizers=3, codebook_size=64, codebook_dim=4)
    config = dataclasses.replace(base, **{**VARIANTS[variant], **fields})
    return build_quantizer(config, DIM)  # type: ignore[return-value]


def latents(batch: int = 3, frames: int = 40, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(7))
    return mix @ torch.randn(batch, DIM, frames, generator=generator) + 2.0


@pytest.fixture(params=[(kind, variant) for kind in QUANTIZERS for variant in VARIANTS], ids="-".join)
def quantizer(request: pytest.FixtureRequest) -> SimVQ | ResidualSimVQ:
    return make(*request.param)


def test_the_table_is_tested() -> None:
    assert len(QUANTIZERS) >= 2


def test_contract_shapes_and_ranges(quantizer: SimVQ | ResidualSimVQ) -> None:
    x = latents()
    output = quantizer(x)
    k = quantizer.num_quantizers
    assert output.quantized.shape == x.shape and output.quantized.dtype == torch.float32
    assert output.codes.shape == (3, k, 40) and output.codes.dtype == torch.int64
    assert output.codes.min() >= 0 and output.codes.max() < quantizer.codebook_size
    assert output.commitment_loss.shape == output.codebook_loss.shape == (3, k)
    torch.testing.assert_close(output.commitment_loss, output.codebook_loss)  # one distance, two gradients


def test_decode_equals_forward_in_eval_mode_exactly(quantizer: SimVQ | ResidualSimVQ) -> None:
    quantizer.initialize(latents(seed=2))
    quantizer.eval()
    output = quantizer(latents())
    assert torch.equal(quantizer.decode(output.codes), output.quantized)


def test_initialize_keeps_most_codes_in_use(quantizer: SimVQ | ResidualSimVQ) -> None:
    quantizer.initialize(latents(8, 400, seed=2))
    codes = quantizer(latents(8, 400, seed=3)).codes
    used = [len(stage.unique()) / quantizer.codebook_size for stage in codes.unbind(1)]
    assert min(used) > 0.85, used


def test_gradients_reach_latents_and_trained_tensors_only(quantizer: SimVQ | ResidualSimVQ) -> None:
    x = latents().requires_grad_()
    output = quantizer(x)
    (output.quantized.square().mean() + output.commitment_loss.mean() + output.codebook_loss.mean()).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    for name, parameter in quantizer.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    frozen = all("basis" not in name for name, _ in quantizer.named_parameters())
    learnable = isinstance(quantizer, SimVQ) and quantizer.basis.requires_grad
    learnable = learnable or (isinstance(quantizer, ResidualSimVQ) and quantizer.stages[0].basis.requires_grad)  # type: ignore
    assert frozen != learnable


def test_codebook_state_decides_what_codes_mean(quantizer: SimVQ | ResidualSimVQ) -> None:
    codes = torch.randint(0, 64, (1, quantizer.num_quantizers, 9))
    before = quantizer.decode(codes)
    other = latents(seed=9)
    quantizer.eval()
    state = [t.clone() for t in quantizer.codebook_state()]
    quantizer.initialize(other)
    assert not torch.equal(quantizer.decode(codes), before), "the cached table must follow its parameters"
    with torch.no_grad():
        for tensor, old in zip(quantizer.codebook_state(), state, strict=True):
            tensor.copy_(old)
    assert torch.equal(quantizer.decode(codes), before)


# ---- SimVQ ------------------------------------------------------------------------------------------------------------


def test_nearest_equals_the_definition_and_chunking_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    points, codebook = torch.randn(500, 6, generator=generator), torch.randn(300, 6, generator=generator)
    expected = torch.cdist(points.double(), codebook.double()).argmin(dim=1)
    assert torch.equal(nearest(points, codebook), expected)
    monkeypatch.setattr("codec.quantizers.search.SEARCH_ELEMENTS", 300 * 7)
    assert torch.equal(nearest(points, codebook), expected)


def test_ties_go_to_the_lowest_index() -> None:
    codebook = torch.randn(50, 4).repeat(20, 1)
    found = nearest(torch.randn(400, 4), codebook)
    assert found.max() < 50


def test_search_is_float32_under_autocast() -> None:
    quantizer = make("simvq")
    quantizer.initialize(latents(seed=2))
    x = latents()
    plain = quantizer(x).codes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(x).codes, plain)


def test_a_step_moves_every_code_of_a_frozen_basis() -> None:
    quantizer = make("simvq")
    assert isinstance(quantizer, SimVQ)
    before, basis = quantizer.codebook.clone(), quantizer.basis.clone()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    quantizer(latents(1, 2)).codebook_loss.mean().backward()  # at most two codes are nearest to anything
    optimizer.step()
    assert (quantizer.codebook != before).any(dim=1).all()
    assert torch.equal(quantizer.basis, basis)


def test_the_losses_pull_what_they_should() -> None:
    quantizer = make("simvq", "no_projection")
    x = latents().requires_grad_()
    quantizer(x).codebook_loss.mean().backward()
    assert x.grad is None
    quantizer.zero_grad()
    quantizer(x).commitment_loss.mean().backward()
    assert x.grad is not None and quantizer.weight.grad is None  # type: ignore[union-attr]


def test_straight_through_gradient_is_the_identity() -> None:
    quantizer = make("simvq", "no_projection")
    x = latents().requires_grad_()
    weight = torch.randn(x.shape)
    (quantizer(x).quantized * weight).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight)


def test_initialize_matches_mean_and_covariance() -> None:
    quantizer = make("simvq", "no_projection", codebook_size=20000)
    assert isinstance(quantizer, SimVQ)
    points = latents(4, 2000)
    quantizer.initialize(points)
    flat = points.transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(quantizer.codebook.mean(dim=0), flat.mean(dim=0), atol=0.15, rtol=0.05)
    scale = torch.cov(flat.t()).diagonal().max().item()
    torch.testing.assert_close(torch.cov(quantizer.codebook.t()), torch.cov(flat.t()), atol=0.08 * scale, rtol=0)


def test_projections_start_as_principal_components() -> None:
    quantizer = make("simvq")
    assert isinstance(quantizer, SimVQ)
    points = latents(4, 500)
    quantizer.initialize(points)
    flat = points.transpose(1, 2).flatten(0, 1)
    z = quantizer.project_in(flat).detach()
    assert abs(float(z.square().mean()) - 1) < 1e-3, "the lookup space has unit variance"
    kept = (quantizer.project_out(z).detach() - flat).square().sum()
    values = torch.linalg.eigvalsh(torch.cov(flat.t(), correction=0))
    torch.testing.assert_close(kept / len(flat), values[:-4].sum(), rtol=1e-3, atol=1e-3)


# ---- residual ---------------------------------------------------------------------------------------------------------


def test_one_stage_equals_simvq_exactly() -> None:
    single, stack = make("simvq"), make("residual_simvq", num_quantizers=1)
    stack.stages[0].load_state_dict(single.state_dict())  # type: ignore[union-attr]
    a, b = single(latents()), stack(latents())
    assert torch.equal(a.codes, b.codes) and torch.equal(a.quantized, b.quantized)
    assert torch.equal(a.commitment_loss, b.commitment_loss) and torch.equal(a.codebook_loss, b.codebook_loss)


def test_each_stage_lowers_the_error_and_a_prefix_decodes() -> None:
    stack = make("residual_simvq").eval()
    stack.initialize(latents(8, 300, seed=2))
    x = latents(4, 100)
    full = stack(x)
    errors = []
    for count in (1, 2, 3):
        fewer = stack(x, num_quantizers=count)
        assert torch.equal(fewer.codes, full.codes[:, :count])
        assert torch.equal(stack.decode(full.codes[:, :count]), fewer.quantized)
        errors.append((fewer.quantized - x).square().mean().item())
    assert errors[0] > 1.2 * errors[1] > 1.2 * 1.2 * errors[2]


def test_dropout_masks_losses_and_output_but_keeps_the_graph() -> None:
    torch.manual_seed(5)
    stack = make("residual_simvq")
    x = latents(32, 10)
    output = stack(x, dropout=1.0)
    used = (output.commitment_loss > 0).sum(dim=1)
    assert set(used.tolist()) == {1, 2, 3}
    for item in range(32):
        alone = stack(x[item : item + 1], num_quantizers=int(used[item]))
        torch.testing.assert_close(output.quantized[item : item + 1], alone.quantized)
    (output.quantized.sum() + output.commitment_loss.sum() + output.codebook_loss.sum()).backward()
    assert all(p.grad is not None for p in stack.parameters())


def test_gradient_is_that_of_the_captured_subspace() -> None:
    """d(quantized)/d(latents) = I - prod(I - P_k), P_k = project_out project_in of stage k."""
    stack = make("residual_simvq")
    stack.initialize(latents(8, 200, seed=2))
    x = latents(1, 1).requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda v: stack(v).quantized, x).reshape(DIM, DIM)
    left_over = torch.eye(DIM)
    for stage in stack.stages:  # type: ignore[union-attr]
        left_over = (torch.eye(DIM) - stage.project_out.weight @ stage.project_in.weight) @ left_over
    torch.testing.assert_close(jacobian, torch.eye(DIM) - left_over, atol=1e-5, rtol=1e-4)
