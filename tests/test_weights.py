"""A model's file in fewer bits: what is rounded, what keeps its values, and what cannot be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from codec import Codec, CodecConfig, ModelError
from codec.weights import STEP, Bits

WIDE, NARROW = "decoder.blocks.0.expand.weight", "encoder.stages.0.0.linear.weight"


@pytest.fixture
def model(tiny_config: CodecConfig) -> Codec:
    """With matrices of short rows and of long ones."""
    torch.manual_seed(0)
    return Codec(replace(tiny_config, latent_dim=64, decoder=replace(tiny_config.decoder, width=64))).eval()


@pytest.mark.parametrize(("bits", "largest"), [(32, 0.0), (16, 2**-11), (8, 0.5 / 127)])
def test_rounded_once_and_no_further_than_the_bits_ask(
    model: Codec, tmp_path: Path, bits: Bits, largest: float
) -> None:
    model.save_pretrained(tmp_path / "a", bits)
    loaded = Codec.from_pretrained(tmp_path / "a")
    for name, tensor in model.state_dict().items():
        kept = loaded.state_dict()[name]
        assert kept.dtype == tensor.dtype
        if name.startswith("quantizer."):
            assert torch.equal(kept, tensor), name
        else:
            most = tensor.abs().amax(dim=1, keepdim=True) if tensor.dim() == 2 else tensor.abs().amax()
            assert ((kept - tensor).abs() <= 1.001 * largest * most + 1e-7 * (bits < 32)).all(), name
    assert loaded.fingerprint == model.fingerprint
    loaded.save_pretrained(tmp_path / "b", bits)
    assert (tmp_path / "b/model.safetensors").read_bytes() == (tmp_path / "a/model.safetensors").read_bytes()


def test_fewer_bits_are_smaller_files(model: Codec, tmp_path: Path) -> None:
    sizes = []
    for bits in (32, 16, 8):
        model.save_pretrained(tmp_path, bits)  # type: ignore[arg-type]
        sizes.append((tmp_path / "model.safetensors").stat().st_size)
    assert sizes[1] < 0.65 * sizes[0] and sizes[2] < 0.75 * sizes[1]
    stored = load_file(tmp_path / "model.safetensors")
    assert stored[WIDE].dtype == torch.int8 and stored[WIDE + STEP].shape == (256, 1)
    assert stored[NARROW].dtype == torch.float16


def test_a_row_of_zeros_stays_one(model: Codec, tmp_path: Path) -> None:
    with torch.no_grad():
        model.state_dict()[WIDE][3] = 0.0
    model.save_pretrained(tmp_path, bits=8)
    kept = Codec.from_pretrained(tmp_path).state_dict()[WIDE]
    assert (kept[3] == 0).all() and torch.isfinite(kept).all()


@pytest.mark.parametrize("bits", [16, 8])
def test_a_drawn_basis_takes_eight_bits_and_any_other_keeps_its_own(model: Codec, tmp_path: Path, bits: Bits) -> None:
    for stored, change in ((torch.float8_e4m3fn, 0.0), (torch.float32, 1e-4)):
        name, basis = next((n, t) for n, t in model.state_dict().items() if n.endswith(".basis"))
        basis.add_(change)
        assert 0.9 < float(basis.std() * basis.shape[1] ** 0.5) < 1.1  # N(0, 1/d)
        model.save_pretrained(tmp_path, bits)
        assert load_file(tmp_path / "model.safetensors")[name].dtype == stored
        loaded = Codec.from_pretrained(tmp_path)
        assert torch.equal(loaded.state_dict()[name], basis) and loaded.fingerprint == model.fingerprint


def test_whole_numbers_without_their_step_are_refused(model: Codec, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, bits=8)
    state = load_file(tmp_path / "model.safetensors")
    save_file({name: tensor for name, tensor in state.items() if name != WIDE + STEP}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=f"{WIDE} must have a .step if it is int8"):
        Codec.from_pretrained(tmp_path)
    save_file(state | {NARROW + STEP: torch.ones(16, 1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=NARROW):
        Codec.from_pretrained(tmp_path)
    save_file(state | {WIDE + STEP: torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"\.step is \[3\], not one number per row"):
        Codec.from_pretrained(tmp_path)
