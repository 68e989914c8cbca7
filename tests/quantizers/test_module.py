"""SimVQ in somebody else's model: torch alone, any layout, masks, the start by itself, layouts of other implementations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loading import python
from torch import Tensor, distributed, nn

from codec.errors import CodecError
from codec.health import HealthMonitor
from codec.quantizers import Quantizer, ResidualSimVQ, SimVQ, base, convert
from codec.quantizers.vq import EMAVQ, ClusteredVQ

DIM = 12
SMALL: dict[str, Any] = {"dim": DIM, "codebook_size": 64, "codebook_dim": 4}


def latents(*shape: int, seed: int = 1) -> Tensor:
    """``[*shape, D]``, with a mean and directions of their own."""
    mix = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(7))
    return torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(seed)) @ mix + 2.0


@pytest.fixture(params=[SimVQ, ResidualSimVQ])
def quantizer(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    quantizer = request.param(**SMALL, **({"num_quantizers": 3} if request.param is ResidualSimVQ else {}))
    quantizer.initialize(latents(900).t()[None])
    return quantizer


@pytest.mark.slow
def test_torch_and_two_gigabytes_are_all_it_needs() -> None:
    """Everything else that the package depends on, and its configuration, may be missing; 262,144 codes fit."""
    code = """if True:
        import resource, sys
        for name in ("soundfile", "soxr", "safetensors", "tqdm", "jinja2", "codec.config", "codec.model", "codec.audio"):
            sys.modules[name] = None
        import torch
        from codec.quantizers import ResidualSimVQ, SimVQ
        quantized, codes, loss = SimVQ(codebook_size=262_144)(torch.randn(2, 256, 1000, requires_grad=True))
        (loss + quantized.square().mean()).backward()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2**21  # KiB, where Linux counts
    """
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_layouts_agree(quantizer: Any) -> None:
    x, k = latents(2, 6, 5), quantizer.num_quantizers  # [B, H, W, D]
    quantized, codes, loss = quantizer(x.movedim(-1, 1))
    assert quantized.shape == (2, DIM, 6, 5) and codes.shape == (2, k, 6, 5) and loss.shape == ()
    flat = quantizer(x.flatten(1, 2).transpose(1, 2))
    assert torch.equal(flat.codes, codes.flatten(2)) and torch.equal(flat.loss, loss)
    rows = quantizer(x.flatten(0, 2))
    assert rows.quantized.shape == (60, DIM) and torch.equal(rows.codes, codes.movedim(1, -1).flatten(0, 2))
    quantizer.channel_first = False
    for values in (x, x.flatten(1, 2)):
        output = quantizer(values)
        assert output.quantized.shape == values.shape and output.codes.shape == (*values.shape[:-1], k)
        assert torch.equal(output.codes.flatten(), rows.codes.flatten())
        assert torch.equal(quantizer.decode(output.codes).flatten(0, -2), quantizer.decode(rows.codes))


def test_padding_enters_nothing(quantizer: Any) -> None:
    x, mask = latents(3, 40), torch.arange(40) < torch.tensor([[40], [25], [7]])  # [B, N, D], [B, N]
    padded = torch.where(mask[..., None], x, 1e4).transpose(1, 2)
    with HealthMonitor(quantizer) as health:
        output = quantizer(padded, mask=mask)
    alone = quantizer(x[mask])
    assert torch.equal(output.codes.transpose(1, 2)[mask], alone.codes)
    for name in ("loss", "commitment_loss", "codebook_loss"):
        assert torch.equal(getattr(output, name), getattr(alone, name)), name
    assert (output.codes.transpose(1, 2)[~mask] == -1).all() and (output.quantized.transpose(1, 2)[~mask] == 0).all()
    assert health.stages[0].frames == 72 and health.latents.count == 72
    assert f"{len(health.stages)}" in str(health).splitlines()[-2] and "72 frames" in str(health)
    torch.testing.assert_close(quantizer.eval().decode(output.codes), output.quantized)
    state = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    quantizer.initialize(padded, mask)
    shifted = quantizer.state_dict()
    quantizer.initialize(x[mask])
    assert any(not torch.equal(tensor, state[name]) for name, tensor in shifted.items())
    assert all(torch.equal(tensor, shifted[name]) for name, tensor in quantizer.state_dict().items())


def test_vectors_of_codes_have_a_gradient(quantizer: Any) -> None:
    output = quantizer.eval()(latents(3, 40).transpose(1, 2))
    assert not quantizer.decode(output.codes).requires_grad
    quantizer.embed(output.codes).square().sum().backward()
    stage = getattr(quantizer, "stages", [quantizer])[-1]
    assert stage.weight.grad.abs().sum() > 0 and stage.project_out.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", [SimVQ, ResidualSimVQ])
def test_the_first_batch_starts_it_once(kind: type[Quantizer]) -> None:
    x = latents(4, 300).transpose(1, 2)
    quantizer, other = kind(**SMALL), kind(**SMALL)
    before = [tensor.clone() for tensor in quantizer.codebook_state()]
    with pytest.raises(CodecError, match="do not vary"):
        quantizer(torch.ones(2, DIM, 9))  # the next batch starts it
    quantizer.eval()(x)
    assert all(torch.equal(a, b) for a, b in zip(before, quantizer.codebook_state(), strict=True)), "not in eval mode"
    assert len(quantizer.train()(x).codes[:, 0].unique()) > 60
    after = [tensor.clone() for tensor in quantizer.codebook_state()]
    other.load_state_dict(quantizer.state_dict())
    for module in (quantizer, other):
        module(latents(4, 300, seed=2).transpose(1, 2) * 5)
        assert all(torch.equal(a, b) for a, b in zip(after, module.codebook_state(), strict=True))
    quantizer.load_state_dict(kind(**SMALL).state_dict())  # as for another fold
    assert len(quantizer(x).codes[:, 0].unique()) > 60, "started again"
    other = kind(**SMALL)
    other.load_state_dict({"foreign": x, "basis": quantizer.codebook_state()[0]}, strict=False)
    assert not other.started
    other.load_state_dict(kind(**SMALL, init=None).state_dict())
    after = [tensor.clone() for tensor in other.codebook_state()]
    other(x)
    assert all(torch.equal(a, b) for a, b in zip(after, other.codebook_state(), strict=True)), "trained without a start"


def test_a_basis_of_latents_and_one_of_your_own() -> None:
    x = latents(500)
    quantizer = SimVQ(DIM, 500, 4, basis="data")
    quantizer.initialize(x)
    distance = torch.cdist(quantizer.codebook, quantizer.project_in(x)).min(dim=1).values
    assert (distance < 0.1).all() and len(quantizer(x).codes.unique()) > 450
    table = torch.randn(40, 3)
    own = SimVQ(DIM, basis=table.double(), init=None)
    assert own.codebook_size == 40 and torch.equal(own.codebook, table) and "basis" not in dict(own.named_parameters())
    flat, factors = SimVQ(DIM, basis=5 + torch.eye(16)), SimVQ(DIM, basis=9 + table, map="diagonal")
    assert all(len(each(x).codes.unique()) > 0.7 * each.codebook_size for each in (flat, factors)), "in their place"


X = torch.zeros(1, DIM, 9)
STACK = ResidualSimVQ(**SMALL, num_quantizers=2, init=None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: STACK(X, mask=torch.ones(9, 1, dtype=torch.bool)), r"mask must be bool \[1, 9\], not .* \[9, 1\]"),
        (lambda: STACK.decode(torch.zeros(1, 3, 9, dtype=torch.int64)), "codes of 3 stages; there are 2"),
        (lambda: STACK(X, num_quantizers=3), "num_quantizers must be from 1 to 2, not 3"),
        (lambda: STACK(X[:, :5]), "5 channels"),
        (lambda: EMAVQ(8, 16, 8).half()(X), r"computes in float32: use quantizer\.float\(\)"),
        (lambda: SimVQ(**SMALL, basis="other"), "basis must be one of 'frozen.*, not 'other'"),
        (lambda: SimVQ(**SMALL, init="other"), "init must be one of 'first.*, not 'other'"),
        (lambda: convert({"weight": X}), "no known layout"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        call()


@pytest.mark.parametrize(("layout", "width"), [("vector-quantize-pytorch", DIM), ("the paper's", DIM), ("a pair", 5)])
def test_codes_of_other_layouts_are_equal(layout: str, width: int) -> None:
    torch.manual_seed(0)
    table, linear = torch.randn(64, width), nn.Linear(width, DIM, bias=layout != "vector-quantize-pytorch")
    codebook = linear(table)
    source: Any = {
        "vector-quantize-pytorch": {"frozen_codebook": table, "code_transform.weight": linear.weight},
        "the paper's": {"embedding.weight": table} | {f"embedding_proj.{n}": p for n, p in linear.named_parameters()},
        "a pair": (table, linear.weight, linear.bias),
    }[layout]
    x = latents(2, 50)
    output = convert(source, channel_first=False)(x)
    assert torch.equal(output.codes[..., 0], torch.cdist(x, codebook).argmin(dim=2))
    torch.testing.assert_close(output.quantized, codebook[output.codes[..., 0]])


def test_codes_of_another_residual_stack_are_equal() -> None:
    """The state of vector-quantize-pytorch's ResidualSimVQ: a stage quantizes what those before it leave."""
    torch.manual_seed(0)
    tables = [(torch.randn(64, DIM), torch.randn(DIM, DIM) / 2**stage) for stage in range(3)]
    names = ("frozen_codebook", "code_transform.weight")
    state = {f"layers.{i}.{name}": t for i, pair in enumerate(tables) for name, t in zip(names, pair, strict=True)}
    x = left = latents(2, 50)
    output = convert(state, channel_first=False, gradient="rotation")(x)
    for codes, (table, weight) in zip(output.codes.unbind(dim=2), tables, strict=True):
        codebook = table @ weight.t()
        assert torch.equal(codes, torch.cdist(left, codebook).argmin(dim=2))
        left = left - codebook[codes]
    torch.testing.assert_close(output.quantized, x - left)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_compilation_changes_no_code(quantizer: Any, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "GROUP", 16), monkeypatch.setattr(base, "CPU_TILE", (150, 32))
    x = latents(2, 50).transpose(1, 2)
    expected = quantizer(x).codes
    quantizer.train(training)
    quantized, codes, loss = torch.compile(lambda x: tuple(quantizer(x)), backend="eager", fullgraph=True)(x)
    assert torch.equal(codes, expected)
    (quantized.square().mean() + loss).backward()
    assert all(p.grad is not None for p in quantizer.parameters())
    if not training:
        module = nn.Module()
        module.quantizer, module.forward = quantizer, lambda x: tuple(quantizer(x))
        assert torch.equal(torch.export.export(module, (x,)).module()(x)[1], expected)


def start_in_a_process(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(0)
    residual, clustered = ResidualSimVQ(**SMALL, num_quantizers=2), ClusteredVQ(DIM, 64, DIM)
    x = latents(200 + 50 * rank, seed=rank)
    assert residual(x).loss > 0 and clustered(x.t()[None].contiguous()).loss > 0
    residual.eval().initialize(x)  # as a model is in that is not trained at once
    kept = {"kept": residual.stages[0].codebook, "clustered": clustered.codebook}
    torch.save(residual.state_dict() | kept, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_all_processes_start_alike(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(start_in_a_process, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["started"] and all(torch.equal(tensor, second[name]) for name, tensor in first.items())
