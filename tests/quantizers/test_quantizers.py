"""The contract over every kind of quantizer, what is particular to SimVQ, the residual stack, and the others; the lookup."""

import doctest
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec import health
from codec.config import ConfigError, QuantizerConfig
from codec.errors import CodecError
from codec.quantizers import QUANTIZERS, Quantizer, ResidualSimVQ, SimVQ, base, build_quantizer, grid, simvq
from codec.quantizers.base import nearest, pass_gradient
from codec.quantizers.grid import FSQ
from codec.quantizers.vq import IndexVQ

DIM = 12
VARIANTS: dict[str, dict[str, object]] = {
    "default": {},
    "no_projection": {"codebook_dim": DIM},
    "rotation": {"gradient": "rotation"},
    "learnable": {"basis": "learnable"},
    "diagonal": {"map": "diagonal"},
    "no_bias": {"map_bias": False},
    "wider": {"codebook_dim": DIM + 4},  # than the latents
}
GRIDS = ("fsq", "lfq", "lattice_vq")
COUNTS = {"simvq": 7, "residual_simvq": 7, "index_vq": 2, **dict.fromkeys(GRIDS, 1)}
VARIANTS_OF = {kind: [*VARIANTS][: COUNTS.get(kind, 3)] for kind in QUANTIZERS}


def make(kind: str, variant: str = "default", **fields: object) -> Any:
    torch.manual_seed(0)
    settings = {"num_quantizers": 3 if kind.startswith("residual_") else 1, "codebook_size": 64}
    settings |= {} if kind in GRIDS else {"codebook_dim": 4}
    return build_quantizer(QuantizerConfig(kind, **{**settings, **VARIANTS[variant], **fields}), DIM)


def latents(batch: int = 3, frames: int = 40, seed: int = 1) -> Tensor:
    mix = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(7))
    return mix @ torch.randn(batch, DIM, frames, generator=torch.Generator().manual_seed(seed)) + 2.0


@pytest.fixture(params=[(kind, variant) for kind, names in VARIANTS_OF.items() for variant in names], ids="-".join)
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    """Every kind, with projections and, where it has a table of codes, without and with the other gradient."""
    return make(*request.param)


def started(quantizer: Quantizer) -> Any:
    """Matched to latents, in eval mode."""
    quantizer.initialize(latents(8, 200, seed=2))
    return quantizer.eval()


# ---- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [False, True])
def test_eval_mode_repeats_itself_and_decodes_to_the_bit(quantizer: Quantizer, start: bool) -> None:
    """Item by item, without gradients, under autocast; and nothing changes."""
    x, k = latents(), quantizer.num_quantizers
    output = (started(quantizer) if start else quantizer.eval())(x)
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    assert output.quantized.shape == x.shape and output.quantized.dtype == torch.float32
    assert output.codes.shape == (3, k, 40) and output.codes.dtype == torch.int64
    assert output.commitment_loss.shape == output.codebook_loss.shape == (3, k)
    assert torch.equal(quantizer.decode(output.codes), output.quantized)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):  # the lookup stays float32
        again = quantizer(x)
    assert torch.equal(again.codes, output.codes) and torch.equal(again.quantized, output.quantized)
    for item in range(3):
        alone = quantizer(x[item : item + 1])
        assert torch.equal(alone.codes[0], output.codes[item])
        torch.testing.assert_close(alone.quantized[0], output.quantized[item])
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantizer.state_dict().items())


@torch.no_grad()
def test_codebook_state_is_all_that_decides_what_codes_mean(quantizer: Quantizer) -> None:
    """Decoding follows every tensor of it, also where a table is kept, and no other tensor."""
    started(quantizer)
    codes = torch.randint(0, 64, (1, quantizer.num_quantizers, 9), generator=torch.Generator().manual_seed(0))
    before, state = quantizer.decode(codes), [tensor.clone() for tensor in quantizer.codebook_state()]
    for tensor in quantizer.state_dict().values():
        tensor.add_(1 + torch.rand(tensor.shape).to(tensor))
    for tensor, old in zip(quantizer.codebook_state(), state, strict=True):
        tensor.copy_(old)
    assert torch.equal(quantizer.decode(codes), before), "a tensor is missing"
    for tensor, old in zip(quantizer.codebook_state(), state, strict=True):
        tensor.add_(1 + torch.rand(tensor.shape).to(tensor))
        assert not torch.equal(quantizer.decode(codes), before), "a tensor has no place in it"
        tensor.copy_(old)


@torch.no_grad()
def test_a_kept_table_follows_tensors_that_are_put_in_place_of_others() -> None:
    """Also where Python puts the new one where the old one was, as it happens now and then."""
    quantizer = started(make("simvq"))
    for _ in range(200):
        before = quantizer.codebook.clone()
        del quantizer.weight
        quantizer.weight = nn.Parameter(torch.randn(4, 4))
        table = quantizer.map_basis(quantizer.basis)
        assert torch.equal(quantizer.codebook, table) and not torch.equal(table, before)
    assert quantizer.codebook is quantizer.codebook
    quantizer.weight.data.mul_(2)  # as averages of weights are put in, which torch does not count
    assert torch.equal(quantizer.eval().codebook, quantizer.map_basis(quantizer.basis))
    assert not torch.equal(quantizer.bfloat16().float().codebook, table)


def test_gradients_reach_latents_and_every_parameter(quantizer: Quantizer) -> None:
    x = latents().requires_grad_()
    output = quantizer(x)
    (output.quantized.square().mean() + output.commitment_loss.mean() + output.codebook_loss.mean()).backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0
    for name, parameter in quantizer.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_initialize_makes_latents_and_codes_fit(quantizer: Quantizer) -> None:
    x = latents(8, 200, seed=3)
    output = started(quantizer)(x)
    left = (output.quantized.detach() - x).square().sum() / (x - x.mean(dim=(0, 2), keepdim=True)).square().sum()
    used = [len(stage.unique()) / quantizer.codebook_size for stage in output.codes.unbind(1)]
    if isinstance(quantizer, IndexVQ):  # inner rows have never the largest dot product, and that is not the nearest
        assert used[0] > 0.25
    else:
        assert used[0] > 0.8 and left < 0.75, (used, float(left))
    if isinstance(quantizer, SimVQ | ResidualSimVQ):
        assert min(used) > 0.85, used


@pytest.mark.parametrize("kind", [kind for kind in QUANTIZERS if kind not in GRIDS])
def test_equal_codes_go_to_the_lowest_index(kind: str) -> None:
    quantizer = started(make(kind))
    for tensor in quantizer.state_dict().values():
        if tensor.ndim and len(tensor) == 64:
            tensor[32:] = tensor[:32].clone()
    assert quantizer(latents()).codes.max() < 32


def test_settings_that_a_kind_cannot_use_are_named() -> None:
    useless = {"vq": {"basis": "learnable"}, "residual_ema_vq": {"map": "diagonal"}, "lfq": {"map_bias": False}}
    useless |= {"fsq": {"codebook_dim": 4}, "index_vq": {"gradient": "rotation"}, "simvq": {"num_quantizers": 3}}
    for kind, setting in useless.items():
        with pytest.raises(ConfigError, match=f"quantizer.{next(iter(setting))} means nothing to {kind}"):
            make(kind, **setting)
    with pytest.raises(CodecError, match="codebook_size must be a power of two"):
        make("fsq", codebook_size=1000)


# ---- what is particular to a kind ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "basis"), [("simvq", "frozen"), ("simvq", "learnable"), ("vq", "frozen")])
def test_a_step_moves_every_code_of_simvq_and_those_that_plain_vq_hit(kind: str, basis: str) -> None:
    quantizer = make(kind, basis=basis)
    before = quantizer.codebook.clone()
    assert torch.equal(before, make("simvq").basis), "both start with one table"
    output = quantizer(latents(1, 2))  # at most two codes are nearest to anything
    output.codebook_loss.mean().backward()
    torch.optim.SGD(quantizer.parameters(), lr=0.1).step()
    moved = (quantizer.codebook != before).any(dim=1).nonzero().flatten()
    assert torch.equal(moved, output.codes.unique() if kind == "vq" else torch.arange(64))
    assert kind == "vq" or torch.equal(quantizer.basis, before) == (basis == "frozen")


def test_one_loss_moves_the_encoder_and_the_other_the_codes() -> None:
    quantizer, x = make("simvq", "no_projection"), latents().requires_grad_()
    output = quantizer(x)
    assert torch.equal(output.commitment_loss, output.codebook_loss)
    output.codebook_loss.mean().backward()
    assert x.grad is None and quantizer.weight.grad is not None
    quantizer.zero_grad()
    output.commitment_loss.mean().backward()
    assert x.grad is not None and quantizer.weight.grad is None


@torch.no_grad()
def test_projections_start_as_principal_components() -> None:
    quantizer = make("simvq")
    x = latents(4, 500)
    quantizer.initialize(x)
    points = x.transpose(1, 2).flatten(0, 1)
    z = quantizer.project_in(points)
    assert abs(float(z.square().mean()) - 1) < 1e-3, "the lookup space has unit variance"
    lost = (quantizer.project_out(z) - points).square().sum() / len(points)
    values = torch.linalg.eigvalsh(torch.cov(points.t(), correction=0))
    torch.testing.assert_close(lost, values[:-4].sum(), rtol=1e-3, atol=1e-3)


def test_dropout_masks_losses_and_output_but_keeps_the_graph() -> None:
    stack = make("residual_simvq")
    x = latents(32, 10)
    output = stack(x, dropout=1.0)
    used = (output.commitment_loss > 0).sum(dim=1)
    assert set(used.tolist()) == {1, 2, 3} and torch.equal(output.codebook_loss > 0, output.commitment_loss > 0)
    for item in range(32):
        alone = stack(x[item : item + 1], num_quantizers=int(used[item]))
        torch.testing.assert_close(output.quantized[item : item + 1], alone.quantized)
        torch.testing.assert_close(stack.decode(alone.codes), alone.quantized)
    (output.quantized.sum() + output.commitment_loss.sum() + output.codebook_loss.sum()).backward()
    assert all(p.grad is not None for p in stack.parameters())
    assert torch.equal(stack.eval()(x, dropout=1.0).quantized, stack(x).quantized), "in training alone"


def test_gradient_is_that_of_the_captured_subspace() -> None:
    """d(quantized)/d(latents) = I - prod(I - P_k), P_k = project_out project_in of stage k."""
    stack = started(make("residual_simvq"))
    x = latents(1, 1).requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda v: stack(v).quantized, x).reshape(DIM, DIM)
    left_over = torch.eye(DIM)
    for stage in stack.stages:
        left_over = (torch.eye(DIM) - stage.project_out.weight @ stage.project_in.weight) @ left_over
    torch.testing.assert_close(jacobian, torch.eye(DIM) - left_over, atol=1e-5, rtol=1e-4)


def test_running_averages_become_the_means_of_what_was_nearest() -> None:
    quantizer = started(make("ema_vq", "no_projection"))
    x = latents(4, 200, seed=5)
    codes, points = quantizer(x).codes.flatten(), x.transpose(1, 2).flatten(0, 1)
    for _ in range(1500):  # the same codes again and again: 0.99 ** 1500 of the start is left
        quantizer.update(points, codes)
    for code in (torch.bincount(codes) > 2).nonzero().flatten():  # one that is hit less is dead, and revived
        torch.testing.assert_close(quantizer.codebook[code], points[codes == code].mean(dim=0), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("kind", "steps"), [("ema_vq", 250), ("clustered_vq", 3)])
def test_unused_codes_move_onto_points_by_the_number_of_updates_alone(kind: str, steps: int) -> None:
    """In EMA the trap is a running average beside the table, which writes the old row back in the same step."""
    far = latents() + 100.0  # the default table is nowhere near: one code takes everything, the others die
    tables = []
    for seed in (1, 2):
        quantizer = make(kind, "no_projection")
        torch.manual_seed(seed)
        for _ in range(steps):
            quantizer(far)
        tables.append(quantizer.codebook)
    assert torch.equal(*tables)
    assert (torch.cdist(tables[0], far.transpose(1, 2).flatten(0, 1)).min(dim=1).values < 3).sum() >= 60
    assert len(quantizer.eval()(far).codes.unique()) > 30


def test_lookup_by_direction_and_gradient_to_every_row() -> None:
    factorised, index = make("factorised_vq", "no_projection"), make("index_vq")
    assert torch.equal(factorised(latents()).codes, factorised(7 * latents()).codes)
    index(latents()).quantized.square().sum().backward()
    assert (index.embedding.grad.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("size", [2, 64, 1024, 8192])
def test_grid_points_are_all_different_and_their_own_codes(kind: str, size: int) -> None:
    quantizer = make(kind, codebook_size=size)
    points = quantizer.codebook
    assert len(points.unique(dim=0)) == size
    z = points
    if isinstance(quantizer, FSQ):  # undo the shift that even numbers of levels need
        half = (quantizer.levels - 1) * (1 + 1e-3) / 2
        z = torch.atanh((points * (quantizer.levels // 2) + 0.5) / half) - torch.atanh(0.5 / half)
    assert torch.equal(quantizer.search(quantizer.bounded(z)), torch.arange(size))
    quantizer.initialize(latents() * (torch.arange(DIM) < 1)[:, None])
    assert quantizer.project_in.weight.norm(dim=1).max() < 200 / latents().std(), "not by the emptiest direction"


# ---- the lookup -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [base, simvq, grid, health])
def test_examples_in_docstrings(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("tile", [(1024, 2048), (7, 64), (7, 256), (64, 128), (500, 320), (1000, 64)])
def test_nearest_with_ties_to_the_lowest_index(monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int]) -> None:
    monkeypatch.setattr(base, "CPU_TILE", tile)
    generator = torch.Generator().manual_seed(3)
    points, codebook = (4 * torch.randn(n, 6, generator=generator).round() for n in (500, 100))  # no sum is rounded
    expected = (points[:, None] - codebook).square().sum(dim=2).argmin(dim=1)
    assert torch.equal(nearest(points, codebook.repeat(3, 1)), expected)
    assert nearest(points[:0], codebook).shape == (0,)


def test_rotation_takes_the_point_to_its_code_and_keeps_angles() -> None:
    """And is finite between opposites; a rotation of nothing is bounded."""
    generator = torch.Generator().manual_seed(0)
    z, e, gradient = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: pass_gradient(v, e, "rotation"), z)
    torch.testing.assert_close(jacobian @ z, e)
    rotation = jacobian * z.norm() / e.norm()
    torch.testing.assert_close(rotation @ rotation.t(), torch.eye(5, dtype=torch.float64))
    assert torch.det(rotation) > 0.99
    pulled = jacobian.t() @ gradient  # what z gets makes with z the angle that the gradient makes with the code
    torch.testing.assert_close(F.cosine_similarity(pulled, z, dim=0), F.cosine_similarity(gradient, e, dim=0))
    z = torch.tensor([[0.0, 0.0], [1.0, 2.0]], requires_grad=True)
    e = torch.tensor([[4.0, 0.0], [-1.0, -2.0]])
    out = pass_gradient(z, e, "rotation")
    assert torch.equal(out, e)
    out.sum().backward()
    assert z.grad is not None and torch.isfinite(z.grad).all() and z.grad[0].abs().max() <= 1
