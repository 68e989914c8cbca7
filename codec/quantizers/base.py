"""The contract of all quantizers, what they share (layouts, masks, the start), and what every table of codes needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from codec.errors import CodecError

Init = Literal["first_batch"] | None
Gradient = Literal["ste", "rotation"]
CPU_TILE = (1024, 2048)  # points x codes: 8 MiB of distances, overwritten tile by tile, stay in the processor's cache
GROUP = 64  # codes: see nearest
SEARCH_ELEMENTS = 2**24  # distances held at once on other devices: 64 MiB, so that V = 262,144 needs no gigabytes
JITTER = 0.01  # noise, as a share of the latents' spread: separates codes that start at the same latent
TABLE_TYPE = torch.float8_e4m3fn  # random numbers need few bits: stored so, a frozen table takes a quarter of the space
COMMITMENT = 0.25  # weight of the commitment loss in ``QuantizerOutput.loss``: beta of arXiv 1711.00937


def one_of(name: str, value: Any, *known: Any) -> Any:
    """The value of an option; a CodecError if it is none of the known ones."""
    if value not in known:
        raise CodecError(f"{name} must be one of {', '.join(map(repr, known))}, not {value!r}")
    return value


@dataclass
class QuantizerOutput:
    """What a quantizer returns; unpacks as ``quantized, codes, loss``. B batch (1 with a mask), K stages used.

    The losses are mean squared distances, 0 for dropped stages. Quantizers without a table of codes return zeros, or what
    their docstring says.
    """

    quantized: Tensor  # float32, shaped as the latents, with gradients to them; 0 where masked
    codes: Tensor  # int64, shaped as the latents with K in place of D; -1 where masked
    commitment_loss: Tensor  # [B, K], pulls latents to their codes
    codebook_loss: Tensor  # [B, K], pulls codes to latents

    @property
    def loss(self) -> Tensor:
        """Both losses in one number to add to a model's own: ``codebook + 0.25 commitment``, summed over the stages."""
        return (self.codebook_loss + COMMITMENT * self.commitment_loss).sum(dim=1).mean()

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.quantized, self.codes, self.loss))


class Quantizer(nn.Module, ABC):
    """A module between encoder and decoder, for latents of width D = dim.

    Latents are ``[B, D, N]``, ``[B, D, H, W]`` (with ``channel_first=False`` ``[B, N, D]``, ``[B, H, W, D]``) or ``[N, D]``.
    Codes have the same shape with K in place of D, also for one stage; masks have it without D.

    Codes are found in float32, outside autocast; of equal distances the lowest index is taken. Latents are not checked for
    NaN, which gets some code. In eval mode a quantizer does not change, and each item of a batch gets what it gets alone,
    except for rounding. Tables computed from the weights are kept then: after writes that torch does not count (through
    ``.data``, by a fused optimizer) call ``eval()`` again. Single quantizers have a ``codebook``, their points ``[V, d]``.
    """

    num_quantizers = 1
    started: Tensor

    def __init__(self, dim: int, codebook_size: int, channel_first: bool = True, init: Init = None) -> None:
        super().__init__()
        self.dim, self.codebook_size, self.channel_first = dim, codebook_size, channel_first
        self._cache: dict[str, tuple[object, list[Tensor], Any]] = {}
        self._awaits_start = one_of("init", init, "first_batch", None) is not None
        if self._awaits_start:
            self.register_buffer("started", torch.tensor(False))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        names = [name for name in self.state_dict() if not name.endswith("started")]
        if "started" in self._buffers and all(f"{prefix}{name}" in state_dict for name in names):
            # all its weights come, so a first batch must not overwrite them
            state_dict.setdefault(f"{prefix}started", torch.tensor(True))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._awaits_start = "started" in self._buffers

    @abstractmethod
    def quantize(self, latents: Tensor, num_quantizers: int, dropout: float) -> QuantizerOutput:
        """The quantization of ``forward``, of latents float32 ``[B, D, N]``, outside autocast."""

    @abstractmethod
    def vectors(self, codes: Tensor) -> Tensor:
        """The vectors ``[B, D, N]`` that ``embed`` gives of codes ``[B, k, N]``, all 0 or more."""

    @abstractmethod
    def match(self, latents: Tensor) -> None:
        """Match the codebooks to latents ``[B, D, N]``, for ``initialize``."""

    @abstractmethod
    def codebook_state(self) -> list[Tensor]:
        """The tensors that decide what a code means, in a fixed order; the model's fingerprint covers them."""

    def forward(
        self, latents: Tensor, num_quantizers: int | None = None, dropout: float = 0.0, mask: Tensor | None = None
    ) -> QuantizerOutput:
        """Quantize latents with the first ``num_quantizers`` stages (default all); ``dropout``: see ResidualQuantizer.

        Where ``mask`` is False there is padding, which counts neither in the losses nor for the start. All else is quantized
        as one long item, so that ``dropout`` draws once for it.

        Raises:
            CodecError: latents of another width; a first batch that does not vary; no stage, or more than there are; a
                quantizer in half or double precision, which would give other codes.
        """
        count = self.num_quantizers if num_quantizers is None else num_quantizers
        if not 1 <= count <= self.num_quantizers:
            raise CodecError(f"num_quantizers must be from 1 to {self.num_quantizers}, not {count}")
        if self.codebook_state()[0].dtype in (torch.float16, torch.bfloat16, torch.float64):
            raise CodecError("a quantizer computes in float32: use quantizer.float(), and autocast around the model")
        frames = self._frames(latents, mask)
        if self._awaits_start and self.training:
            if not self.started:
                self.initialize(latents, mask)
            self._awaits_start = False  # so that the buffer is read once only: reading waits for the GPU
        with torch.autocast(frames.device.type, enabled=False):  # half precision chooses other codes
            output = self.quantize(frames.float(), count, dropout if self.training else 0.0)
        output.quantized = self._restore_layout(output.quantized, latents, mask, 0.0)
        output.codes = self._restore_layout(output.codes, latents, mask, -1)
        return output

    def embed(self, codes: Tensor) -> Tensor:
        """Vectors of codes of the first k stages, shaped as latents, with gradients to the codebooks; 0 for code -1."""
        stages = self.points(codes).transpose(1, 2)  # [B, k, N]
        if not 1 <= stages.shape[1] <= self.num_quantizers:
            raise CodecError(f"codes of {stages.shape[1]} stages; there are {self.num_quantizers}")
        with torch.autocast(codes.device.type, enabled=False):
            vectors = torch.where(stages[:, :1] < 0, 0.0, self.vectors(stages.clamp(min=0)))
        return self._restore_layout(vectors, codes, None, 0.0)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """``embed`` without gradients: what ``forward`` gave for these codes in eval mode."""
        return self.embed(codes)

    @torch.no_grad()
    def initialize(self, latents: Tensor, mask: Tensor | None = None) -> None:
        """Match the codebooks to real latents, in place; all processes call this and take the result of the first one.

        Raises a CodecError if the latents do not vary.
        """
        frames = self._frames(latents, mask)
        spread = frames.double().transpose(0, 1).flatten(1).var(dim=1).sum()
        if not spread > 1e-10 * frames.double().square().mean():  # rounding makes 1e-14; "not >" also holds for NaN
            raise CodecError("the latents do not vary: the input is silent or constant, or training diverged")
        with torch.autocast(frames.device.type, enabled=False):
            self.match(frames)
        if "started" in self._buffers:
            self.started.fill_(True)
        if distributed.is_available() and distributed.is_initialized():
            for tensor in self.state_dict().values():
                distributed.broadcast(tensor, src=0)
            self.train(self.training)  # forgets what was kept, as torch does not count these writes

    def kept(self, name: str, tensors: list[Tensor], compute: Callable[[], Any]) -> Any:
        """A value that follows from these tensors; in eval mode it is kept until torch has counted a write to one."""
        if self.training or torch.compiler.is_compiling():
            return compute()
        try:
            writes = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        except RuntimeError:  # a tensor made in inference mode has no count, a tensor of torch.func no memory
            return compute()
        if name not in self._cache or self._cache[name][0] != writes:
            held = [tensor.detach() for tensor in tensors]  # keep their memory: no other tensor gets their address
            self._cache[name] = writes, held, compute()
        return self._cache[name][2]

    def train(self, mode: bool = True) -> Quantizer:
        self._cache.clear()  # writes through ``.data``, as when weights are averaged, are not counted
        return super().train(mode)

    def points(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Latents or codes in any layout as ``[B, N, C]``; with a mask as ``[1, M, C]``."""
        last = values.movedim(1, -1) if self.channel_first else values
        if mask is None:
            return last.flatten(1, -2) if values.ndim > 2 else last[None]
        if mask.dtype != torch.bool or mask.shape != last.shape[:-1]:
            raise CodecError(f"mask must be bool {list(last.shape[:-1])}, not {mask.dtype} {list(mask.shape)}")
        return last[mask][None]

    def _frames(self, latents: Tensor, mask: Tensor | None) -> Tensor:
        frames = self.points(latents, mask).transpose(1, 2)  # [B, D, N]
        if frames.shape[1] != self.dim:
            order = f"channel_first={self.channel_first}"
            raise CodecError(f"latents {list(latents.shape)} have {frames.shape[1]} channels ({order}), not {self.dim}")
        return frames

    def _restore_layout(self, values: Tensor, like: Tensor, mask: Tensor | None, fill: float) -> Tensor:
        """``[B, C, N]`` in the layout of ``like``; ``fill`` where the mask is False."""
        points = values.transpose(1, 2)
        shape = (*(like.movedim(1, -1) if self.channel_first else like).shape[:-1], points.shape[-1])
        if mask is None:
            whole = points.reshape(shape)
        else:
            whole = points.new_full(shape, fill)
            whole[mask] = points[0]
        return whole.movedim(-1, 1) if self.channel_first else whole


# ---- tables of codes --------------------------------------------------------------------------------------------------


def nearest(points: Tensor, codebook: Tensor, squared: Tensor | None = None) -> Tensor:
    """Index ``[M]`` of the row of ``codebook`` ``[V, d]`` nearest to each of ``points`` ``[M, d]``; ties to the lowest.

    ``|p - c|^2 = |p|^2 - 2 p.c + |c|^2``, where the first term is the same for all codes and is left out; ``squared`` is the
    last one, ``[V]``, if the caller has it. Call it outside autocast: half precision confuses near codes. There is no
    gradient.

    >>> nearest(torch.tensor([[0.9, 0.2]]), torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
    tensor([1])
    """
    # detached: products into given memory refuse gradients, and an exported graph would forget no_grad
    points, codebook = points.detach().float(), codebook.detach().float()
    squared = codebook.square().sum(dim=1) if squared is None else squared.detach()
    if missing := -len(codebook) % GROUP:  # fill up the last group with codes that are infinitely far away
        codebook, squared = F.pad(codebook, (0, 0, 0, missing)), F.pad(squared, (0, missing), value=torch.inf)
    rows, columns = CPU_TILE
    if points.device.type != "cpu":
        rows, columns = max(1, SEARCH_ELEMENTS // len(codebook)), len(codebook)
    elif not torch.compiler.is_compiling() and len(points) < rows:
        # the same memory holds more codes: all, for a frame of a stream
        columns = rows * columns // max(len(points), 1) // GROUP * GROUP
    parts = [points] if torch.compiler.is_exporting() else points.split(rows)  # an exported loop has a fixed length
    tiles = list(zip(codebook.split(columns), squared.split(columns), strict=True))
    memory = points.new_empty(parts[0].shape[0], min(columns, len(codebook)))
    found = []
    for part in parts:
        each = torch.arange(part.shape[0], device=part.device)
        least = part.new_full(part.shape[:1], torch.inf)
        index, first = torch.zeros_like(least, dtype=torch.int64), 0
        for codes, norms in tiles:
            distances = torch.addmm(norms, part, codes.t(), alpha=-2, out=memory[: part.shape[0], : len(codes)])
            # torch finds a minimum ten times faster than its index: so find a group of codes first, then one of them
            groups = distances.unflatten(1, (-1, GROUP))
            distance, group = groups.amin(dim=2).min(dim=1)
            local = group * GROUP + groups[each, group].argmin(dim=1)
            closer = distance < least  # not <=: of equal ones the earlier has the lower index
            least, index = torch.where(closer, distance, least), torch.where(closer, local + first, index)
            first += len(codes)
        found.append(index)
    return torch.cat(found)


def pass_gradient(z: Tensor, chosen: Tensor, how: Gradient) -> Tensor:
    """The values of ``chosen``, to the bit, with a gradient to ``z`` and none to ``chosen``; both are ``[..., d]``.

    The lookup has no gradient of its own. ``ste`` takes the identity (Bengio et al., arXiv 1308.3432).
    ``rotation`` takes the rotation and scaling that turn z into its code, held fixed, so that gradients keep their angle
    to the vector they belong to (Fifty et al., arXiv 2410.06424). With ``u = z / |z|``, ``v = e / |e|`` and
    ``r = (u + v) / |u + v|`` it is ``|e| / |z| * (I - 2 r r^T + 2 v u^T)``. Opposite vectors have no ``r``: there the map
    is the identity less ``2 u u^T``, which also takes u to v. A z of zero has no angle to keep: its map is a reflection.

    >>> z, code = torch.tensor([2.0, 0.0], requires_grad=True), torch.tensor([0.0, 4.0])
    >>> for how in ("ste", "rotation"):
    ...     passed = pass_gradient(z, code, how)
    ...     print(passed.tolist(), torch.autograd.grad(passed[1], z)[0].round(decimals=4).tolist())
    [0.0, 4.0] [0.0, 1.0]
    [0.0, 4.0] [2.0, 0.0]
    """
    value = chosen.detach()
    if how == "ste":
        return value + (z - z.detach())  # the bracket is zero and has the gradient of z
    with torch.no_grad():
        length = z.norm(dim=-1, keepdim=True)
        scale = torch.where(length > 1e-6, value.norm(dim=-1, keepdim=True) / length, 1.0)
        u, v = F.normalize(z, dim=-1), F.normalize(value, dim=-1)
        r = F.normalize(u + v, dim=-1, eps=1e-5)  # a shorter sum is nothing but rounding
    turned = scale * (z - 2 * r * (r * z).sum(dim=-1, keepdim=True) + 2 * v * (u * z).sum(dim=-1, keepdim=True))
    return value + (turned - turned.detach())


def projections(dim: int, codebook_dim: int) -> tuple[nn.Module, nn.Module]:
    """Linear layers into and out of a lookup of another width than the latents; identities where the widths are equal."""
    if codebook_dim == dim:
        return nn.Identity(), nn.Identity()
    return nn.Linear(dim, codebook_dim), nn.Linear(codebook_dim, dim)


def start_projections(project_in: nn.Module, project_out: nn.Module, latents: Tensor) -> Tensor:
    """Set both layers, in place, from ``latents`` ``[B, D, N]``; returns what the lookup then sees, float64 ``[B N, d]``.

    With m the mean and ``U [D, d]`` the leading principal components of the latents, ``z = U^T (x - m) / s`` and
    ``x = s U z + m``: of all linear maps through d dimensions these lose the least. The scale s gives the lookup space
    unit variance, so that the losses of all residual stages are of one size. Identities are left alone.
    """
    points = latents.transpose(1, 2).flatten(0, 1).double()  # [B N, D]
    if not (isinstance(project_in, nn.Linear) and isinstance(project_out, nn.Linear)):
        return points
    mean = points.mean(dim=0)
    vectors = torch.linalg.eigh(torch.cov(points.t(), correction=0)).eigenvectors
    components = vectors[:, -project_in.out_features :].flip(1)  # [D, at most d], largest first
    components = F.pad(components, (0, project_in.out_features - components.shape[1]))  # [D, d]: beyond D all are zero
    project_in.weight.copy_(components.t())
    project_in.bias.copy_(-(mean @ components))
    project_out.weight.copy_(components)
    project_out.bias.copy_(mean)
    z = (points - mean) @ components
    scale = z.square().mean().sqrt()
    project_in.weight.div_(scale)
    project_in.bias.div_(scale)
    project_out.weight.mul_(scale)
    return z / scale


def random_table(codebook_size: int, dim: int) -> Tensor:
    """Codes ``[V, d]`` from N(0, 1/d), rounded to ``TABLE_TYPE``, in float32."""
    return torch.randn(codebook_size, dim).mul_(dim**-0.5).to(TABLE_TYPE).float()


def sampled_points(points: Tensor, count: int) -> Tensor:
    """A table to start from: ``count`` of the points ``[M, d]``, none twice while another is left, with a little noise.

    The same points give the same table: the draw has its own fixed seed.
    """
    generator = torch.Generator().manual_seed(0)
    rounds = -(-count // len(points))
    order = torch.cat([torch.randperm(len(points), generator=generator) for _ in range(rounds)])[:count]
    noise = torch.randn(count, points.shape[1], generator=generator).to(points)
    return points[order.to(points.device)] + JITTER * points.std(dim=0) * noise
