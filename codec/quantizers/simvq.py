"""SimVQ: a vector quantizer whose codebook is a frozen random table times one learned linear map.

Zhu et al., "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer" (arXiv 2411.02038).
Plain vector quantization moves, at each step, only the codes that were nearest to something; the others die. Here the
codebook is ``E = C W + b`` with C fixed. The chosen rows ``e_j = c_j W + b`` get gradients ``g_j`` from the loss, so W gets
``sum_j c_j^T g_j`` and b gets ``sum_j g_j``. A step of size lr then moves every code ``e_i``, chosen or not, by
``-lr (c_i sum_j c_j^T g_j + sum_j g_j)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec.quantizers import base
from codec.quantizers.base import Gradient, Init, Quantizer, QuantizerOutput, one_of


class SimVQ(Quantizer):
    """One codebook ``E = C W + b``: ``basis`` is C, ``weight`` is W, ``bias`` is b.

    >>> quantizer = SimVQ(dim=32, codebook_size=64, codebook_dim=8)
    >>> quantized, codes, loss = quantizer(torch.randn(2, 32, 16, 16))
    >>> quantized.shape, codes.shape, torch.equal(quantizer.eval().decode(codes), quantizer.embed(codes))
    (torch.Size([2, 32, 16, 16]), torch.Size([2, 1, 16, 16]), True)

    Args:
        dim: width D of the latents.
        codebook_size: codes V.
        codebook_dim: dimension d of the lookup; linear layers lead there and back where it is not D.
        basis: C is drawn from N(0, 1/d) and "frozen", or "learnable" (which can bring collapse back); with "data" it is
            frozen, and ``initialize`` puts V latents into it; or a tensor ``[V, d]``, frozen, which sets V and d.
        map: W is "dense", or "diagonal": one factor per dimension.
        map_bias: whether there is a b.
        gradient: how the gradient passes the lookup, "ste" (straight-through) or "rotation"; see ``pass_gradient``.
        channel_first: where the latents have their channels; see Quantizer.
        init: "first_batch": the first training batch calls ``initialize``, and ``started`` in the state dict records that
            (of a state that lacks it, but has all weights, too); None leaves the call to you.

    Raises:
        CodecError: an option has an unknown value.
    """

    basis: Tensor

    def __init__(
        self,
        dim: int = 256,
        codebook_size: int = 65536,
        codebook_dim: int = 16,
        basis: Literal["frozen", "learnable", "data"] | Tensor = "frozen",
        map: Literal["dense", "diagonal"] = "dense",
        map_bias: bool = True,
        gradient: Gradient = "ste",
        channel_first: bool = True,
        init: Init = "first_batch",
    ) -> None:
        if isinstance(basis, Tensor):
            origin, table = "given", basis.detach().clone().float()
        else:  # drawn before the projections, so that a seed gives the same table with and without them
            origin = one_of("basis", basis, "frozen", "learnable", "data")
            table = base.random_table(codebook_size, codebook_dim)
        super().__init__(dim, len(table), channel_first, init)
        self.origin, d = origin, table.shape[1]
        self.diagonal = one_of("map", map, "dense", "diagonal") == "diagonal"
        self.gradient = one_of("gradient", gradient, "ste", "rotation")
        if origin == "learnable":
            self.basis = nn.Parameter(table)
        else:
            self.register_buffer("basis", table)
        self.weight = nn.Parameter(torch.ones(d) if self.diagonal else torch.eye(d))
        self.bias = nn.Parameter(torch.zeros(d)) if map_bias else None
        self.project_in, self.project_out = base.projections(dim, d)

    def quantize(self, latents: Tensor, num_quantizers: int, dropout: float) -> QuantizerOutput:
        z = self.project_in(latents.transpose(1, 2))  # [B, N, d], the lookup space
        codes = base.nearest(z.flatten(0, 1), *self._table).view(z.shape[:2])  # [B, N]
        chosen = self.rows(codes)  # [B, N, d]
        commitment_loss = (z - chosen.detach()).square().mean(dim=(1, 2))  # [B], moves the encoder to the codes
        codebook_loss = (z.detach() - chosen).square().mean(dim=(1, 2))  # [B], moves the codes: W and b
        passed = base.pass_gradient(z, chosen, self.gradient)  # [B, N, d], chosen in value, gradient to z
        quantized = self.project_out(passed).transpose(1, 2)  # [B, D, N]
        return QuantizerOutput(quantized, codes[:, None], commitment_loss[:, None], codebook_loss[:, None])

    def rows(self, codes: Tensor) -> Tensor:
        """The chosen codes, ``[..., d]``; with gradients only the chosen rows of C are mapped, and W and b learn."""
        if torch.is_grad_enabled():
            return self.map_basis(F.embedding(codes, self.basis))
        return F.embedding(codes, self.codebook)  # the same except for rounding

    def vectors(self, codes: Tensor) -> Tensor:
        return self.project_out(self.rows(codes[:, 0])).transpose(1, 2)

    def map_basis(self, rows: Tensor) -> Tensor:
        """``C W + b`` for rows of the basis, ``[..., d] -> [..., d]``."""
        mapped = rows * self.weight if self.diagonal else rows @ self.weight
        return mapped if self.bias is None else mapped + self.bias

    @property
    def codebook(self) -> Tensor:
        """The effective table ``[V, d]`` in float32, without gradient."""
        return self._table[0]

    @property
    def _table(self) -> tuple[Tensor, Tensor]:
        """The codebook and the squared lengths ``[V]`` of its rows; kept in eval mode, where W then costs no time."""
        return self.kept("table", self.codebook_state(), self._compute_table)

    def _compute_table(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), torch.autocast(self.basis.device.type, enabled=False):
            codebook = self.map_basis(self.basis).float()
            return codebook, codebook.square().sum(dim=1)

    def match(self, latents: Tensor) -> None:
        """Data-matched start: principal components for the projections, then ``matched_map`` of what the lookup sees."""
        points = base.start_projections(self.project_in, self.project_out, latents).float()  # [M, d], M = B N
        weight, bias = matched_map(points, self.diagonal, self.bias is not None)
        if self.origin == "given":  # the map expects rows of mean 0 and covariance I / d: bring them there first
            own, mean = matched_map(self.basis.float(), self.diagonal, self.bias is not None)
            weight = torch.linalg.pinv(own, rtol=1e-6, hermitian=True) @ weight
            bias = bias - mean @ weight
        if self.origin == "data":  # C gets the points themselves, W and b begin as the identity
            self.basis.copy_(base.sampled_points(points, self.codebook_size))
            weight, bias = torch.eye(len(weight)), torch.zeros_like(bias)
        self.weight.copy_(weight.diag() if self.diagonal else weight)
        if self.bias is not None:
            self.bias.copy_(bias)

    def codebook_state(self) -> list[Tensor]:
        bias = [] if self.bias is None else [self.bias]
        return [self.basis, self.weight, *bias, *self.project_out.parameters()]


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
        return root_d * centered.square().mean(dim=0).sqrt().diag(), bias
    values, vectors = torch.linalg.eigh(centered.t() @ centered / len(centered))
    return root_d * ((vectors * values.clamp(min=0).sqrt()) @ vectors.t()), bias


class ResidualQuantizer(Quantizer):
    """A loop over single quantizers: each stage quantizes the rest that the stages before it left, in the latent space.

    ``r_1 = x``, ``q_k = stage_k(r_k)``, ``r_(k+1) = r_k - q_k``, and the result is ``q_1 + ... + q_K = x - r_(K+1)``.

    Gradient: nothing is detached between stages. With the straight-through gradient a stage is, backwards, its linear map
    ``P_k = project_out project_in``: ``dr_(k+1) / dr_k = I - P_k``, so ``d quantized / dx = I - (I - P_K) ... (I - P_1)``.
    An encoder dimension that no stage carries gets no gradient from the reconstruction; one that several stages carry gets
    the gradient once.

    Args:
        stage: builds one stage from ``dim`` and ``settings``.
        dim: width D of the latents.
        num_quantizers: stages K.
        channel_first, init: see SimVQ.
    """

    def __init__(
        self,
        stage: Callable[..., Quantizer],
        dim: int,
        num_quantizers: int,
        channel_first: bool = True,
        init: Init = None,
        **settings: Any,
    ) -> None:
        stages = [stage(dim, **settings) for _ in range(num_quantizers)]
        super().__init__(dim, stages[0].codebook_size, channel_first, init)
        self.num_quantizers = num_quantizers
        self.stages = cast("list[Quantizer]", nn.ModuleList(stages))  # a ModuleList does not say what it holds

    def quantize(self, latents: Tensor, num_quantizers: int, dropout: float) -> QuantizerOutput:
        """``dropout`` (training): the share of the batch's items that use only a random number of stages, 1 to K,
        evenly on a logarithmic scale. All stages are computed and masked, so that every parameter stays in the graph.
        """
        batch, device = latents.shape[0], latents.device
        used = torch.full((batch,), num_quantizers, device=device)
        if dropout > 0:
            fewer = (torch.rand(batch, device=device) * math.log(num_quantizers + 1)).exp().long()  # 1 to K
            used = torch.where(torch.rand(batch, device=device) < dropout, fewer, used)
        mask = (torch.arange(num_quantizers, device=device) < used[:, None]).float()  # [B, K], 1 where a stage is used
        residual, quantized = latents, torch.zeros_like(latents)  # [B, D, N] both
        outputs = []
        for index in range(num_quantizers):
            output = self.stages[index](residual)
            quantized = quantized + mask[:, index, None, None] * output.quantized
            residual = residual - output.quantized
            outputs.append(output)
        return QuantizerOutput(
            quantized,
            codes=torch.cat([output.codes for output in outputs], dim=1),
            commitment_loss=mask * torch.cat([output.commitment_loss for output in outputs], dim=1),
            codebook_loss=mask * torch.cat([output.codebook_loss for output in outputs], dim=1),
        )

    def vectors(self, codes: Tensor) -> Tensor:
        parts = [self.stages[index].vectors(codes[:, index : index + 1]) for index in range(codes.shape[1])]
        return sum(parts, torch.zeros_like(parts[0]))  # added in the order of quantize, so that both round alike

    def match(self, latents: Tensor) -> None:
        """Match the stages one after another, each to what the stages before it leave of these latents."""
        residual = latents
        for stage in self.stages:
            stage.match(residual)
            residual = residual - stage(residual).quantized

    def codebook_state(self) -> list[Tensor]:
        return [tensor for stage in self.stages for tensor in stage.codebook_state()]


class ResidualSimVQ(ResidualQuantizer):
    """A residual stack of SimVQ stages; ``settings`` are those of SimVQ, ``channel_first`` and ``init`` for the whole."""

    def __init__(self, dim: int = 256, num_quantizers: int = 8, codebook_size: int = 1024, **settings: Any) -> None:
        all_settings: dict[str, Any] = {"init": "first_batch", "codebook_size": codebook_size} | settings
        super().__init__(partial(SimVQ, init=None), dim, num_quantizers, **all_settings)
