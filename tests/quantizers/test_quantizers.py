"""The contract of every quantizer in the table, and what is particular to SimVQ and its residual stack."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec.config import ConfigError, QuantizerConfig
from codec.quantizers import QUANTIZERS, VQ, Quantizer, ResidualSimVQ, SimVQ, build_quantizer
from codec.quantizers.ema import EMAVQ
from codec.quantizers.gradient import pass_gradient
from codec.quantizers.grid import FSQ, GridQuantizer, grid_levels
from codec.quantizers.online import IndexVQ

DIM = 12
VARIANTS = {
    "frozen": {},
    "learnable": {"basis": "learnable"},
    "diagonal": {"map": "diagonal"},
    "no_bias": {"map_bias": False},
    "rotation": {"gradient": "rotation"},
    "no_projection": {"codebook_dim": DIM},
}
SIMVQ = ("simvq", "residual_simvq")
GRIDS = ("fsq", "lfq", "lattice_vq")
EVERY = [(kind, variant) for kind in QUANTIZERS for variant in ("frozen", "no_projection", "rotation")]
EVERY = [(kind, variant) for kind, variant in EVERY if not (kind in GRIDS and variant != "frozen")]
EVERY += [(kind, variant) for kind in SIMVQ for variant in ("learnable", "diagonal", "no_bias")]


def make(kind: str, variant: str = "frozen", **fields: object) -> SimVQ | ResidualSimVQ:
    torch.manual_seed(0)
    base = QuantizerConfig(kind=kind, num_quantizers=3 if kind.startswith("residual_") else 1, codebook_size=64)
    if kind not in GRIDS:
        base = dataclasses.replace(base, codebook_dim=4)
    config = dataclasses.replace(base, **{**VARIANTS[variant], **fields})
    return build_quantizer(config, DIM)  # type: ignore[return-value]


def latents(batch: int = 3, frames: int = 40, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(7))
    return mix @ torch.randn(batch, DIM, frames, generator=generator) + 2.0


@pytest.fixture(params=[(kind, variant) for kind in SIMVQ for variant in VARIANTS], ids="-".join)
def quantizer(request: pytest.FixtureRequest) -> SimVQ | ResidualSimVQ:
    """SimVQ and its residual stack in every variant."""
    return make(*request.param)


@pytest.fixture(params=EVERY, ids="-".join)
def anyone(request: pytest.FixtureRequest) -> Quantizer:
    """Every quantizer of the table, with projections and, where it has a table, without and with the other gradient."""
    return make(*request.param)


def started(quantizer: Quantizer) -> Quantizer:
    """Matched to latents, in eval mode."""
    quantizer.initialize(latents(8, 200, seed=2))
    return quantizer.eval()


# ---- the contract -----------------------------------------------------------------------------------------------------


def test_the_table_is_tested() -> None:
    assert {kind for kind, _ in EVERY} == set(QUANTIZERS) and len(QUANTIZERS) >= 14


def test_shapes_and_ranges(anyone: Quantizer) -> None:
    x = latents()
    output, k = anyone(x), anyone.num_quantizers
    assert output.quantized.shape == x.shape and output.quantized.dtype == torch.float32
    assert output.codes.shape == (3, k, 40) and output.codes.dtype == torch.int64
    assert output.codes.min() >= 0 and output.codes.max() < anyone.codebook_size
    assert output.commitment_loss.shape == output.codebook_loss.shape == (3, k)


@pytest.mark.parametrize("start", [False, True])
def test_decoding_equals_forward_in_eval_mode_to_the_bit(anyone: Quantizer, start: bool) -> None:
    output = (started(anyone) if start else anyone.eval())(latents())
    assert torch.equal(anyone.decode(output.codes), output.quantized)
    with torch.no_grad():
        assert torch.equal(anyone(latents()).quantized, output.quantized)


def test_gradients_reach_latents_and_every_parameter(anyone: Quantizer) -> None:
    x = latents().requires_grad_()
    output = anyone(x)
    (output.quantized.square().mean() + output.commitment_loss.mean() + output.codebook_loss.mean()).backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0
    for name, parameter in anyone.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_initialize_makes_latents_and_codes_fit(anyone: Quantizer) -> None:
    x = latents(8, 200, seed=3)
    output = started(anyone)(x)
    left = (output.quantized.detach() - x).square().sum() / (x - x.mean(dim=(0, 2), keepdim=True)).square().sum()
    used = len(output.codes[:, 0].unique()) / anyone.codebook_size
    by_dot_product = isinstance(anyone, IndexVQ)  # inner rows are never the largest, and the largest is not the nearest
    assert used > (0.25 if by_dot_product else 0.8), used
    assert by_dot_product or left < 0.75, float(left)


def test_state_moves_to_another_instance(anyone: Quantizer) -> None:
    started(anyone)
    twin = copy.deepcopy(anyone)
    for tensor in twin.state_dict().values():
        tensor.zero_()
    twin.load_state_dict(anyone.state_dict())
    a, b = anyone(latents()), twin.eval()(latents())
    assert torch.equal(a.codes, b.codes) and torch.equal(a.quantized, b.quantized)


def test_items_of_a_batch_do_not_touch_each_other(anyone: Quantizer) -> None:
    started(anyone)
    x = latents(5)
    together = anyone(x)
    for item in range(5):
        alone = anyone(x[item : item + 1])
        assert torch.equal(alone.codes[0], together.codes[item])
        torch.testing.assert_close(alone.quantized[0], together.quantized[item])


def test_eval_mode_changes_nothing_and_repeats_itself(anyone: Quantizer) -> None:
    started(anyone)
    before = {name: tensor.clone() for name, tensor in anyone.state_dict().items()}
    first, second = anyone(latents()), anyone(latents())
    assert torch.equal(first.codes, second.codes) and torch.equal(first.quantized, second.quantized)
    assert all(torch.equal(tensor, before[name]) for name, tensor in anyone.state_dict().items())


def test_lookup_is_float32_under_autocast(anyone: Quantizer) -> None:
    started(anyone)
    x = latents()
    plain = anyone(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = anyone(x)
    assert torch.equal(output.codes, plain.codes) and torch.equal(output.quantized, plain.quantized)


@pytest.mark.parametrize("kind", [kind for kind in QUANTIZERS if kind not in GRIDS])
def test_equal_codes_go_to_the_lowest_index(kind: str) -> None:
    quantizer = started(make(kind))
    for tensor in quantizer.state_dict().values():
        if tensor.ndim and len(tensor) == 64:
            tensor[32:] = tensor[:32].clone()
    assert quantizer(latents()).codes.max() < 32


def test_codebook_state_is_what_decoding_depends_on(anyone: Quantizer) -> None:
    codes = torch.randint(0, 64, (1, anyone.num_quantizers, 9), generator=torch.Generator().manual_seed(0))
    before, state = anyone.eval().decode(codes), [t.detach().clone() for t in anyone.codebook_state()]
    started(anyone)
    assert not torch.equal(anyone.decode(codes), before)
    changed = [not torch.equal(a, b) for a, b in zip(state, anyone.codebook_state(), strict=True)]
    assert any(changed)


# ---- SimVQ and its residual stack in every variant -------------------------------------------------------------------------


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


# ---- plain VQ and running averages ---------------------------------------------------------------------------------------


def test_plain_vq_and_simvq_start_with_one_and_the_same_table() -> None:
    plain, simvq = make("vq"), make("simvq")
    assert isinstance(plain, VQ) and isinstance(simvq, SimVQ)
    assert torch.equal(plain.codebook, simvq.codebook)


def test_plain_vq_moves_only_the_codes_it_hit() -> None:
    quantizer = make("vq")
    assert isinstance(quantizer, VQ)
    before = quantizer.codebook.clone()
    output = quantizer(latents(1, 2))
    output.codebook_loss.mean().backward()
    torch.optim.SGD(quantizer.parameters(), lr=0.1).step()
    moved = (quantizer.codebook != before).any(dim=1).nonzero().flatten()
    assert torch.equal(moved, output.codes.unique())


def test_running_averages_become_the_means_of_what_was_nearest() -> None:
    quantizer = make("ema_vq", "no_projection")
    assert isinstance(quantizer, EMAVQ)
    quantizer.initialize(latents(8, 200))
    x = latents(4, 200, seed=5)
    codes = quantizer.eval()(x).codes.flatten()
    points = x.transpose(1, 2).flatten(0, 1)
    quantizer.train()
    for _ in range(1500):  # the same codes again and again: 0.99 ** 1500 of the start is left
        quantizer.update(points, codes)
    for code in codes.unique()[:10]:
        torch.testing.assert_close(quantizer.codebook[code], points[codes == code].mean(dim=0), atol=0.02, rtol=0.02)


def test_a_revived_code_stays_revived() -> None:
    """The trap: a running average beside the table writes the old row back, in the same step."""
    quantizer = make("ema_vq", "no_projection")
    assert isinstance(quantizer, EMAVQ)
    far = latents() + 100.0  # the default table is nowhere near: one code takes everything, the others die
    for _ in range(300):
        before = quantizer.codebook
        quantizer(far)
        if ((quantizer.codebook - before).norm(dim=1) > 10).sum() > 30:
            break
    points = far.transpose(1, 2).flatten(0, 1).double()
    distance = torch.cdist(quantizer.codebook.double(), points).min(dim=1).values
    assert (distance < 0.01).sum() >= 60, "dead codes now lie on points of the batch"
    quantizer(far)
    assert (torch.cdist(quantizer.codebook.double(), points).min(dim=1).values < 3).sum() >= 60
    assert len(quantizer.eval()(far).codes.unique()) > 30


def test_revival_depends_on_the_number_of_updates_alone() -> None:
    tables = []
    for seed in (1, 2):
        quantizer = make("ema_vq", "no_projection")
        torch.manual_seed(seed)
        for _ in range(250):
            quantizer(latents() + 100.0)
        tables.append(quantizer.codebook_state()[0])
    assert torch.equal(*tables)


# ---- other quantizers ----------------------------------------------------------------------------------------------------


def test_rotation_takes_the_point_to_its_code_and_keeps_angles() -> None:
    generator = torch.Generator().manual_seed(0)
    z, e, gradient = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: pass_gradient(v, e, "rotation"), z)
    torch.testing.assert_close(jacobian @ z, e)
    rotation = jacobian * z.norm() / e.norm()
    torch.testing.assert_close(rotation @ rotation.t(), torch.eye(5, dtype=torch.float64))
    assert torch.det(rotation) > 0.99
    pulled = jacobian.t() @ gradient  # what z gets makes with z the angle that the gradient makes with the code
    torch.testing.assert_close(F.cosine_similarity(pulled, z, dim=0), F.cosine_similarity(gradient, e, dim=0))


def test_rotation_is_finite_at_zero_and_between_opposites() -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, 2.0]], requires_grad=True)
    e = torch.tensor([[1.0, 0.0], [-1.0, -2.0]])
    out = pass_gradient(z, e, "rotation")
    assert torch.equal(out, e)
    out.sum().backward()
    assert z.grad is not None and torch.isfinite(z.grad).all()


def test_index_backpropagation_reaches_every_row() -> None:
    quantizer = make("index_vq")
    quantizer(latents()).quantized.square().sum().backward()
    assert (quantizer.embedding.grad.abs().sum(dim=1) > 0).all()  # type: ignore[union-attr]


def test_online_clustering_pulls_unused_codes_onto_points() -> None:
    quantizer = make("clustered_vq", "no_projection")
    far = latents() + 100.0
    quantizer(far)
    points = far.transpose(1, 2).flatten(0, 1)
    assert (torch.cdist(quantizer.codebook, points).min(dim=1).values < 1).sum() >= 60  # type: ignore[arg-type]


def test_factorised_lookup_is_by_direction() -> None:
    quantizer = make("factorised_vq", "no_projection")
    x = latents()
    assert torch.equal(quantizer(x).codes, quantizer(7 * x).codes)


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("size", [2, 64, 1024, 8192])
def test_grid_points_are_all_different_and_their_own_codes(kind: str, size: int) -> None:
    quantizer = make(kind, codebook_size=size)
    assert isinstance(quantizer, GridQuantizer)
    points = quantizer.codebook
    assert len(points.unique(dim=0)) == size
    z = points
    if isinstance(quantizer, FSQ):  # undo the shift that even numbers of levels need
        half = (quantizer.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(quantizer.levels % 2 == 0, 0.5, 0.0)
        z = torch.atanh((points * (quantizer.levels // 2) + offset) / half) - torch.atanh(offset / half)
    digits, _ = quantizer.round(z[None])
    assert torch.equal((digits * quantizer.places).sum(dim=-1)[0], torch.arange(size))


def test_grids_say_what_they_cannot_do() -> None:
    assert [grid_levels(size) for size in (1024, 8192, 65536)] == [(8, 8, 4, 4), (8, 8, 8, 4, 4), (8, 8, 8, 8, 4, 4)]
    with pytest.raises(ConfigError, match="power of two"):
        make("fsq", codebook_size=1000)


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("vq", {"basis": "learnable"}),
        ("residual_ema_vq", {"map": "diagonal"}),
        ("lfq", {"map_bias": False}),
        ("fsq", {"codebook_dim": 4}),
        ("lattice_vq", {"gradient": "rotation"}),
        ("simvq", {"num_quantizers": 3}),
    ],
)
def test_settings_that_mean_nothing_to_a_kind_are_named(kind: str, setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"quantizer.{next(iter(setting))} means nothing to {kind}"):
        make(kind, **setting)


def test_index_backpropagation_learns_to_use_its_table() -> None:
    """In an autoencoder of its own: with flat choices in its entropy, nearly all points came to take a few rows."""
    torch.manual_seed(0)
    encoder, decoder = (nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(2))
    quantizer = build_quantizer(QuantizerConfig(kind="index_vq", codebook_size=512, codebook_dim=16), 16)
    mix = torch.randn(16, 16) * torch.logspace(0, -1, 16)[:, None]
    modules = nn.ModuleList([encoder, decoder, quantizer])
    optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(500):
        x = torch.randn(320, 16) @ mix + 2.0
        z = encoder(x).t()[None]
        if step < 150:
            loss = (decoder(z[0].t()) - x).square().mean()
        else:
            output = quantizer(z)
            loss = (decoder(output.quantized[0].t()) - x).square().mean()
            loss = loss + output.commitment_loss.mean() + 4 * output.codebook_loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        codes = quantizer.eval()(encoder(torch.randn(4000, 16) @ mix + 2.0).t()[None]).codes
    assert len(codes.unique()) > 200
