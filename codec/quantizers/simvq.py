"""SimVQ: a vector quantizer whose codebook is a frozen random table times one learned linear map.

Zhu et al., "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer" (arXiv 2411.02038).
Plain vector quantization moves, at each step, only the codes that were nearest to something; the others die. Here the
codebook is ``E = C W + b`` with C fixed. The chosen rows ``e_j = c_j W + b`` get gradients ``g_j`` from the loss, so W gets
``sum_j c_j^T g_j`` and b gets ``sum_j g_j``. A step of size lr then moves every code ``e_i``, chosen or not, by
``-lr (c_i sum_j c_j^T g_j + sum_j g_j)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec.config import QuantizerConfig
from codec.quantizers.base import Quantizer, QuantizerOutput
from codec.quantizers.lookup import nearest, pass_gradient, projection, random_table, start_projections


class SimVQ(Quantizer):
    """One codebook ``E = C W + b``: ``basis`` is C, ``weight`` is W, ``bias`` is b.

    Args:
        dim: width D of the latents.
        config: codebook size V and dimension d, and the variant: ``basis="learnable"`` trains C too (which can bring
            collapse back), ``map="diagonal"`` learns one factor per dimension, ``map_bias=False`` leaves out b;
            ``gradient="rotation"`` replaces the straight-through gradient.
    """

    num_quantizers = 1
    basis: Tensor

    def __init__(self, dim: int, config: QuantizerConfig) -> None:
        super().__init__()
        self.codebook_size, d = config.codebook_size, config.codebook_dim
        self.gradient, self.diagonal = config.gradient, config.map == "diagonal"
        basis = random_table(config.codebook_size, d)  # drawn first: a seed gives one table whatever the projections
        if config.basis == "learnable":
            self.basis = nn.Parameter(basis)
        else:
            self.register_buffer("basis", basis)
        self.weight = nn.Parameter(torch.ones(d) if self.diagonal else torch.eye(d))
        self.bias = nn.Parameter(torch.zeros(d)) if config.map_bias else None
        self.project_in, self.project_out = projection(dim, d), projection(d, dim)
        self._cached: tuple[object, Tensor] | None = None  # see ``codebook``

    def forward(self, latents: Tensor, num_quantizers: int | None = None, dropout: float = 0.0) -> QuantizerOutput:
        """Quantize ``[B, D, N]``; see ``base.py`` for the contract, which has the other arguments for residual stacks."""
        assert num_quantizers in (None, 1), "SimVQ has one stage"
        with torch.autocast(latents.device.type, enabled=False):  # in half precision codes change places
            z = self.project_in(latents.float().transpose(1, 2))  # [B, N, d], the lookup space
            codebook = self.codebook  # [V, d], E = C W + b, without gradient
            codes = nearest(z.flatten(0, 1), codebook).view(z.shape[:2])  # [B, N]
            if torch.is_grad_enabled():  # W and b learn: only the chosen rows of C pass through them
                chosen = self.map_basis(F.embedding(codes, self.basis))  # [B, N, d]
            else:  # the same rows, as ``decode`` takes them: equal to the bit
                chosen = F.embedding(codes, codebook)  # [B, N, d]
            commitment_loss = (z - chosen.detach()).square().mean(dim=(1, 2))  # [B], moves the encoder to the codes
            codebook_loss = (z.detach() - chosen).square().mean(dim=(1, 2))  # [B], moves the codes: W and b
            passed = pass_gradient(z, chosen, self.gradient)  # [B, N, d], chosen in value, gradient to z
            quantized = self.project_out(passed).transpose(1, 2)  # [B, D, N]
        return QuantizerOutput(quantized, codes[:, None], commitment_loss[:, None], codebook_loss[:, None])

    def decode(self, codes: Tensor) -> Tensor:
        assert codes.shape[1] == 1, "SimVQ has one stage"
        return self.project_out(F.embedding(codes[:, 0], self.codebook)).transpose(1, 2)

    def map_basis(self, rows: Tensor) -> Tensor:
        """``C W + b`` for rows of the basis, ``[..., d] -> [..., d]``."""
        mapped = rows * self.weight if self.diagonal else rows @ self.weight
        return mapped if self.bias is None else mapped + self.bias

    @property
    def codebook(self) -> Tensor:
        """The effective table ``[V, d]`` in float32, without gradient; kept in eval mode, where W then costs nothing."""
        tensors = [t for t in (self.basis, self.weight, self.bias) if t is not None]
        # ``_version`` counts changes in place; inference tensors have none
        lasting = not self.training and not any(t.is_inference() for t in tensors)
        key = [(id(t), t._version, t.device) for t in tensors] if lasting else None
        if key is not None and self._cached is not None and self._cached[0] == key:
            return self._cached[1]
        with torch.no_grad(), torch.autocast(self.basis.device.type, enabled=False):
            table = self.map_basis(self.basis).float()
        self._cached = None if key is None else (key, table)
        return table

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        """Data-matched start: principal components for the projections, then ``matched_map`` of what the lookup sees."""
        points = start_projections(self.project_in, self.project_out, latents).float()  # [M, d], M = B N
        weight, bias = matched_map(points, self.diagonal, self.bias is not None)
        self.weight.copy_(weight)
        if self.bias is not None:
            self.bias.copy_(bias)

    def codebook_state(self) -> list[Tensor]:
        tensors = [self.basis, self.weight, self.bias, *self.project_out.parameters()]
        return [tensor for tensor in tensors if tensor is not None]


def matched_map(points: Tensor, diagonal: bool = False, with_bias: bool = True) -> tuple[Tensor, Tensor]:
    """``W`` and ``b``, in float64, that give the codes ``C W + b`` the mean and covariance of ``points`` ``[M, d]``.

    The rows of C have mean 0 and covariance ``I / d``, so those of ``C W + b`` have mean b and covariance ``W^T W / d``.
    Points of mean m and covariance Sigma are matched by ``b = m`` and ``W = sqrt(d) Sigma^(1/2)``. Of all W with
    ``W^T W = d Sigma`` the symmetric one moves the codes least. A diagonal W takes the standard deviation of each
    dimension. Without bias b is 0, and Sigma is taken about 0.

    >>> weight, bias = matched_map(torch.tensor([[1.0, 2.0], [1.0, -2.0], [-1.0, 2.0], [-1.0, -2.0]]) + 5)
    >>> (weight / 2**0.5).round(decimals=4).tolist(), bias.tolist()
    ([[1.0, 0.0], [0.0, 2.0]], [5.0, 5.0])
    """
    points = points.double()
    bias = points.mean(dim=0) if with_bias else torch.zeros_like(points[0])
    centered, root_d = points - bias, float(points.shape[1]) ** 0.5
    if diagonal:
        return root_d * centered.square().mean(dim=0).sqrt(), bias
    return root_d * symmetric_root(centered.t() @ centered / len(centered)), bias


def symmetric_root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix ``[d, d]``.

    >>> symmetric_root(torch.tensor([[5.0, 4.0], [4.0, 5.0]])).round(decimals=4).tolist()
    [[2.0, 1.0], [1.0, 2.0]]
    """
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.t()


class ResidualQuantizer(Quantizer):
    """A loop over single quantizers: each stage quantizes what the stages before it left over, in the latent space.

    ``r_1 = x``, ``q_k = stage_k(r_k)``, ``r_(k+1) = r_k - q_k``, and the result is ``q_1 + ... + q_K = x - r_(K+1)``.

    Gradient: nothing is detached between stages. With the straight-through gradient a stage is, backwards, its linear map
    ``P_k = project_out project_in``: ``dr_(k+1) / dr_k = I - P_k``, so ``d quantized / dx = I - (I - P_K) ... (I - P_1)``.
    An encoder dimension that no stage carries gets no gradient from the reconstruction; one that several stages carry gets
    it once.

    Args:
        dim: width D of the latents.
        config: of every stage, and how many there are.
        stage: builds one stage.
    """

    def __init__(self, dim: int, config: QuantizerConfig, stage: Callable[[int, QuantizerConfig], Quantizer]) -> None:
        super().__init__()
        self.num_quantizers, self.codebook_size = config.num_quantizers, config.codebook_size
        stages = nn.ModuleList([stage(dim, config) for _ in range(config.num_quantizers)])
        self.stages = cast("list[Quantizer]", stages)  # a ModuleList does not say what it holds

    def forward(self, latents: Tensor, num_quantizers: int | None = None, dropout: float = 0.0) -> QuantizerOutput:
        """Quantize ``[B, D, N]`` with the first ``num_quantizers`` stages (default all).

        ``dropout`` (training): the share of the batch's items that use only a random number of stages, 1 to K. The
        later stages are computed and masked, so that every parameter stays in the graph on every process.
        """
        count = self.num_quantizers if num_quantizers is None else num_quantizers
        kept = self._kept(latents, count, dropout)  # [B, count]
        residual, quantized = latents, torch.zeros_like(latents, dtype=torch.float32)  # [B, D, N] both
        outputs = []
        for index in range(count):
            output = self.stages[index](residual)
            quantized = quantized + kept[:, index, None, None] * output.quantized
            residual = residual - output.quantized
            outputs.append(output)
        return QuantizerOutput(
            quantized,
            codes=torch.cat([output.codes for output in outputs], dim=1),
            commitment_loss=kept * torch.cat([output.commitment_loss for output in outputs], dim=1),
            codebook_loss=kept * torch.cat([output.codebook_loss for output in outputs], dim=1),
        )

    @staticmethod
    def _kept(latents: Tensor, count: int, dropout: float) -> Tensor:
        """``[B, count]``: 1 where an item of the batch uses a stage, 0 where dropout left the stage out."""
        batch, device = len(latents), latents.device
        used = torch.full((batch,), count, device=device)
        if dropout > 0:
            fewer = torch.randint(1, count + 1, (batch,), device=device)
            used = torch.where(torch.rand(batch, device=device) < dropout, fewer, used)
        return (torch.arange(count, device=device) < used[:, None]).float()

    def decode(self, codes: Tensor) -> Tensor:
        parts = [self.stages[index].decode(codes[:, index : index + 1]) for index in range(codes.shape[1])]
        return sum(parts, torch.zeros_like(parts[0]))  # one after another, as in forward: the sums round alike

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        """Start the stages one after another, each from what the ones before it leave of these latents."""
        residual = latents
        for stage in self.stages:
            stage.initialize(residual)
            residual = residual - stage(residual).quantized

    def codebook_state(self) -> list[Tensor]:
        return [tensor for stage in self.stages for tensor in stage.codebook_state()]


class ResidualSimVQ(ResidualQuantizer):
    """A residual stack of SimVQ stages: the default."""

    def __init__(self, dim: int, config: QuantizerConfig) -> None:
        super().__init__(dim, config, SimVQ)
