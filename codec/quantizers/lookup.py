"""What quantizers with a table of codes share: projections, search, losses and the gradient past the lookup."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from codec.config import QuantizerConfig
from codec.quantizers.base import Quantizer, QuantizerOutput
from codec.quantizers.gradient import pass_gradient
from codec.quantizers.projection import projection, start_projections
from codec.quantizers.search import nearest

JITTER = 0.01  # of the latents' spread: keeps apart codes that start at one and the same latent


class LookupQuantizer(Quantizer):
    """One table of codes ``[V, d]``; subclasses say where it comes from and how it moves.

    ``z = project_in(latents)``, ``code = search(z)``, ``quantized = project_out(table[code])``. Both losses are mean squared
    distances in the lookup space: ``commitment = (z - sg(e))^2`` moves the encoder, ``codebook = (sg(z) - e)^2`` the table.

    Args:
        dim: width D of the latents.
        config: codebook size, dimension, and ``gradient``.
    """

    num_quantizers = 1

    def __init__(self, dim: int, config: QuantizerConfig) -> None:
        super().__init__()
        self.codebook_size, self.codebook_dim, self.gradient = (
            config.codebook_size,
            config.codebook_dim,
            config.gradient,
        )
        self.project_in = projection(dim, config.codebook_dim)
        self.project_out = projection(config.codebook_dim, dim)

    @abstractmethod
    def table(self) -> Tensor:
        """The codes ``[V, d]`` in the lookup space, with whatever gradient they have."""

    @property
    def codebook(self) -> Tensor:
        """The codes ``[V, d]`` without gradient, float32."""
        return self.table().detach().float()

    def rows(self, codes: Tensor) -> Tensor:
        """Points of the lookup space ``[..., d]`` of codes ``[...]``, with whatever gradient the table has."""
        return F.embedding(codes, self.table())

    def search(self, z: Tensor) -> Tensor:
        """Codes ``[M]`` of points ``[M, d]``: the nearest."""
        return nearest(z, self.codebook)

    def carry(self, z: Tensor, chosen: Tensor) -> Tensor:
        """``chosen`` ``[B, N, d]`` in value, with the gradient of the reconstruction to ``z`` (and to the table)."""
        return pass_gradient(z, chosen, self.gradient)

    def update(self, z: Tensor, codes: Tensor) -> None:
        """What else moves the table in a training step, given points ``[M, d]`` and their codes ``[M]``; in place."""

    def extra_loss(self, z: Tensor) -> Tensor | None:
        """What a quantizer adds to ``codebook_loss``, ``[B]``, given points ``[B, N, d]``."""
        return None

    @abstractmethod
    def start(self, points: Tensor) -> None:
        """Match the table to points ``[M, d]`` of the lookup space, in place."""

    def forward(self, latents: Tensor, num_quantizers: int | None = None, dropout: float = 0.0) -> QuantizerOutput:
        assert num_quantizers in (None, 1), f"{type(self).__name__} has one stage"
        with torch.autocast(latents.device.type, enabled=False):
            z = self.project_in(latents.float().transpose(1, 2))  # [B, N, d]
            codes = self.search(z.detach().flatten(0, 1)).view(z.shape[:2])
            chosen = self.rows(codes)
            commitment = (z - chosen.detach()).square().mean(dim=(1, 2))
            codebook_loss = (z.detach() - chosen).square().mean(dim=(1, 2))
            extra = self.extra_loss(z)
            codebook_loss = codebook_loss if extra is None else codebook_loss + extra
            quantized = self.project_out(self.carry(z, chosen)).transpose(1, 2)
            if self.training and torch.is_grad_enabled():
                self.update(z.detach().flatten(0, 1), codes.flatten())
        return QuantizerOutput(quantized, codes.unsqueeze(1), commitment.unsqueeze(1), codebook_loss.unsqueeze(1))

    def decode(self, codes: Tensor) -> Tensor:
        assert codes.shape[1] == 1, f"{type(self).__name__} has one stage"
        quantized: Tensor = self.project_out(F.embedding(codes[:, 0], self.codebook)).transpose(1, 2)
        return quantized

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        """Data-matched start: projections from principal components, the table from what the lookup then sees."""
        points = latents.transpose(1, 2).flatten(0, 1).double()
        self.start(start_projections(self.project_in, self.project_out, points).float())

    def codebook_state(self) -> list[Tensor]:
        return [self.table(), *self.project_out.parameters()]


def sampled_points(points: Tensor, count: int) -> Tensor:
    """``count`` of the points ``[M, d]``, each once before any comes again, with a little noise: a table to start from.

    The same for the same points: the draw has its own fixed seed.
    """
    generator = torch.Generator().manual_seed(0)
    rounds = -(-count // len(points))
    order = torch.cat([torch.randperm(len(points), generator=generator) for _ in range(rounds)])[:count]
    noise = torch.randn(count, points.shape[1], generator=generator).to(points)
    return points[order.to(points.device)] + JITTER * points.std(dim=0) * noise


def over_processes(points: Tensor, sums: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The first process's points on every process, and ``sums`` added up over all; as given where there is one process."""
    if distributed.is_available() and distributed.is_initialized():
        points = points.clone()
        distributed.broadcast(points, src=0)
        for tensor in sums:
            distributed.all_reduce(tensor)
    return points, sums
