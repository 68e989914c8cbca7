"""A model's file in fewer bits: what is rounded, what keeps its values, and what cannot be read."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from codec import Codec, CodecConfig, ModelError
from codec.config import QuantizerConfig
from codec.pretrained import CHECKSUM
from codec.quantizers import QUANTIZERS
from codec.weights import STEP, Bits, Outline

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
    with pytest.raises(ModelError, match=rf"{WIDE} must be of type F32 .*, not I8; int8 has a \.step"):
        Codec.from_pretrained(tmp_path)
    save_file(state | {NARROW + STEP: torch.ones(16, 1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=NARROW):
        Codec.from_pretrained(tmp_path)
    save_file(state | {WIDE + STEP: torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"\.step is \[3\], not one number per row"):
        Codec.from_pretrained(tmp_path)


# ---- files that are not what they were ------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 16, 8])
def test_every_damage_of_the_weights_is_noticed(model: Codec, tmp_path: Path, bits: Bits) -> None:
    model.save_pretrained(tmp_path, bits)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])["__metadata__"]
    assert header["format"] == "pt" and len(header[CHECKSUM]) == 64
    for place in (start, start + 1000, (start + len(data)) // 2, len(data) - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ModelError, match=r"model\.safetensors is damaged: its checksum is wrong"):
            Codec.from_pretrained(tmp_path)
    path.write_bytes(data[:-1])
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be used"):
        Codec.from_pretrained(tmp_path)


def test_files_without_a_checksum_load_as_those_of_other_tools_and_of_older_versions(
    model: Codec, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path), path)
    assert CHECKSUM.encode() not in path.read_bytes()
    assert Codec.from_pretrained(tmp_path).fingerprint == model.fingerprint


def test_the_same_weights_make_the_same_file(model: Codec, tmp_path: Path) -> None:
    """Although safetensors writes its metadata in any order."""
    made = set()
    for _ in range(12):
        model.save_pretrained(tmp_path, bits=16)
        made.add((tmp_path / "model.safetensors").read_bytes())
    assert len(made) == 1


@pytest.mark.parametrize("name", [WIDE, "quantizer.stages.1.basis", "encoder.norm.bias"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_no_numbers_are_refused(
    model: Codec, tmp_path: Path, name: str, value: float, dtype: torch.dtype
) -> None:
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state[name] = state[name].to(dtype)
    state[name].view(-1)[-1] = value
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=f"{name} holds NaN or infinity"):
        Codec.from_pretrained(tmp_path)


def test_numbers_that_overflow_when_they_are_unpacked_are_refused(model: Codec, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, bits=8)
    state = load_file(tmp_path / "model.safetensors")
    for name, tensor in (
        (WIDE + STEP, torch.full((256, 1), 3e38)),
        (NARROW, torch.full((8, 8), 1e300, dtype=torch.float64)),
    ):
        save_file(state | {name: tensor}, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=f"{name.removesuffix(STEP)} holds NaN or infinity"):
            Codec.from_pretrained(tmp_path)


def test_weights_beyond_half_precision_are_kept(model: Codec, tmp_path: Path) -> None:
    with torch.no_grad():
        model.state_dict()[NARROW][0, 0] = 1e6
    model.save_pretrained(tmp_path, bits=16)
    assert Codec.from_pretrained(tmp_path).state_dict()[NARROW][0, 0] == 1e6


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e5m2]
)
def test_weights_of_other_types_are_refused(model: Codec, tmp_path: Path, dtype: torch.dtype) -> None:
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(state | {WIDE: state[WIDE].to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=f"{WIDE} must be of type F32"):
        Codec.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 18000000\n", "a git-lfs pointer"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "a web page"),
        (b"\n <HTML lang=en>", "a web page"),
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "a web page"),
        (b"PK\x03\x04" + bytes(100), "safetensors cannot be used: "),
        (b"", "safetensors cannot be used: "),
        (bytes(8), "safetensors cannot be used: "),
        (b"\xff" * 100, "safetensors cannot be used: "),
        ((200_000).to_bytes(8, "little") + b"[" * 200_000, "safetensors cannot be used: "),
        ((2).to_bytes(8, "little") + b"{}", "missing decoder"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_came_in_place_of_the_file_is_named(tmp_path: Path, model: Codec, content: bytes, said: str) -> None:
    model.save_pretrained(tmp_path)
    names = ["model.safetensors", "config.json"] if said.startswith("a ") else ["model.safetensors"]
    for name in names:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=said) as error:
            Codec.from_pretrained(tmp_path)
        assert name in str(error.value) and str(error.value).isprintable()


def test_names_of_tensors_are_escaped_and_cut(model: Codec, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for name in ("\x1b]0;title\x07\n", "k" * 100_000, "\u202ename"):
        save_file(state | {name: torch.zeros(1)}, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match="not part of the model") as error:
            Codec.from_pretrained(tmp_path)
        assert str(error.value).isprintable() and len(str(error.value)) < 1100


# ---- the outline of a model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_an_outline_has_the_names_and_shapes_of_the_model(tiny_config: CodecConfig, kind: str) -> None:
    quantizer = QuantizerConfig(kind, num_quantizers=3 if kind.startswith("residual") else 1, codebook_size=32)
    config = replace(tiny_config, quantizer=quantizer)
    with Outline():
        outline = Codec(config).state_dict()
    state = Codec(config).state_dict()
    assert {n: (t.shape, t.dtype) for n, t in outline.items()} == {n: (t.shape, t.dtype) for n, t in state.items()}


@pytest.mark.slow
def test_an_outline_loads_no_compiler(tiny_model_folder: Path) -> None:
    """Operations on the meta device do, which would take longer than loading the model."""
    code = f"import sys; from codec import Codec; Codec.from_pretrained({str(tiny_model_folder)!r})\n"
    code += "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
