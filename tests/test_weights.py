"""A model's file in fewer bits: what is rounded, what keeps its values, and what cannot be read."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from loading import flipped, python
from safetensors.torch import load_file, save_file
from torch import Tensor

import codec.pretrained
from codec import Codec, CodecConfig, ModelError
from codec.pretrained import CHECKSUM, STEP
from codec.weights import Bits, save_weights

WIDE, NARROW = "decoder.blocks.0.expand.weight", "encoder.stages.0.0.linear.weight"
BASIS = "quantizer.stages.1.basis"
NO_FLOATS = (torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e5m2)
NO_NAMES = ("\x1b]0;t\x07\n", "k" * 10**5, "\u202ea")
Change = Callable[[Tensor], Tensor]


@pytest.fixture
def model(tiny_config: CodecConfig) -> Codec:
    """With matrices of short rows and of long ones, a row of zeros, and a weight beyond half precision."""
    torch.manual_seed(0)
    model = Codec(replace(tiny_config, latent_dim=64, decoder=replace(tiny_config.decoder, width=64))).eval()
    model.state_dict()[WIDE][3] = 0.0
    model.state_dict()[NARROW][0, 0] = 1e6
    return model


@pytest.mark.parametrize(("bits", "largest"), [(32, 0.0), (16, 2**-11), (8, 0.5 / 127)])
def test_rounded_once_and_no_further_than_bits_ask(model: Codec, tmp_path: Path, bits: Bits, largest: float) -> None:
    model.save_pretrained(tmp_path / "a", bits)
    loaded, size = Codec.from_pretrained(tmp_path / "a"), (tmp_path / "a/model.safetensors").stat().st_size
    assert size < {32: 1.1, 16: 0.65, 8: 0.45}[bits] * sum(4 * t.numel() for t in model.state_dict().values())
    for name, tensor in model.state_dict().items():
        kept = loaded.state_dict()[name]
        assert kept.dtype == tensor.dtype
        if name.startswith("quantizer."):
            assert torch.equal(kept, tensor), name
        else:
            most = tensor.abs().amax(dim=1, keepdim=True) if tensor.dim() == 2 else tensor.abs().amax()
            assert ((kept - tensor).abs() <= 1.001 * largest * most + 1e-7 * (bits < 32)).all(), name
    assert loaded.fingerprint == model.fingerprint
    for _ in range(6):  # safetensors writes its metadata in any order
        loaded.save_pretrained(tmp_path / "b", bits)
        assert (tmp_path / "b/model.safetensors").read_bytes() == (tmp_path / "a/model.safetensors").read_bytes()


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


def test_a_matrix_is_stored_with_its_step(model: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the other half of each may be in the base beside it: one matrix is doubled, in one a number changes."""
    model.save_pretrained(tmp_path / "base-v1", bits=8)
    monkeypatch.setattr(codec.pretrained, "__file__", str(tmp_path / "__init__.py"))
    state = model.state_dict()
    other = WIDE.replace("expand", "project")
    state[WIDE].mul_(2)
    state[other][0, state[other][0].abs().argmin()] += state[other][0].abs().max() / 2
    model.save_pretrained(tmp_path / "other", bits=8, base="base")
    model.save_pretrained(tmp_path / "whole", bits=8)
    assert load_file(tmp_path / "other" / "model.safetensors").keys() == {WIDE, WIDE + STEP, other, other + STEP}
    loaded, whole = (Codec.from_pretrained(tmp_path / name).state_dict() for name in ("other", "whole"))
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in whole.items())
    with pytest.raises(ModelError, match="is no shipped model"):
        model.save_pretrained(tmp_path / "lost", base=str(tmp_path / "whole"))
    with pytest.raises(ModelError, match="base cannot be the base: this model has no decoder"):
        save_weights({}, tmp_path / "none", 8, "base")
    (tmp_path / "base-v1" / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    refusal(tmp_path / "other", "base-v1.model.safetensors cannot be used: .*, with git lfs if a pointer lies in its")
    before = (tmp_path / "whole" / "model.safetensors").read_bytes()
    monkeypatch.setattr("codec.model.write_json", Mock(side_effect=OSError))
    with pytest.raises(OSError):
        model.save_pretrained(tmp_path / "whole", bits=16)
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_weights_of_every_float_type(tiny_model: Codec, tmp_path: Path, dtype: torch.dtype) -> None:
    tiny_model.save_pretrained(tmp_path)
    tensors = {name: tensor.to(dtype) for name, tensor in tiny_model.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = Codec.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in tensors.items())


# ---- files that are not what they were ------------------------------------------------------------------------------


def refusal(folder: Path, message: str) -> str:
    """What loading says: one short printable line that ``message`` matches."""
    with pytest.raises(ModelError, match=message) as error:
        Codec.from_pretrained(folder)
    said = str(error.value)
    assert said.isprintable() and len(said) < 1100
    return said


@pytest.mark.parametrize("bits", [32, 8])
def test_damage_is_named(model: Codec, tmp_path: Path, bits: Bits) -> None:
    """And files without a checksum load, as those of other tools and of older versions."""
    model.save_pretrained(tmp_path, bits)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert json.loads(data[8:start])["__metadata__"]["format"] == "pt"
    for place in (start, (start + len(data)) // 2, len(data) - 1):
        path.write_bytes(flipped(data, place))
        refusal(tmp_path, r"model\.safetensors is damaged: its checksum is wrong")
    path.write_bytes(data[:-1])
    refusal(tmp_path, r"model\.safetensors cannot be used")
    path.write_bytes(data)
    save_file(load_file(path), path)
    assert CHECKSUM.encode() not in path.read_bytes()
    assert Codec.from_pretrained(tmp_path).fingerprint == model.fingerprint


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (WIDE + STEP, None, rf"missing {WIDE}\.step"),
        (NARROW + STEP, lambda _: torch.ones(16, 1), NARROW),
        (WIDE + STEP, lambda _: torch.ones(3), r"\.step is \[3\]"),
        (WIDE + STEP, lambda _: torch.full((256, 1), torch.inf), f"{WIDE} holds NaN or infinity"),
        (BASIS, lambda t: torch.full_like(t, torch.nan), f"{BASIS} holds NaN or infinity"),
        *((NARROW, lambda t, dtype=dtype: t.to(dtype), f"{NARROW} is .* of type F32") for dtype in NO_FLOATS),
        ("encoder.output.bias", lambda _: torch.zeros(3, 3), "encoder.output.bias"),
        *((name, lambda _: torch.zeros(1), "not part of the model") for name in NO_NAMES),
    ],
)
def test_bad_tensors_are_named(model: Codec, tmp_path: Path, name: str, change: Change | None, message: str) -> None:
    model.save_pretrained(tmp_path, bits=8)
    state = load_file(tmp_path / "model.safetensors")
    tensor = state.pop(name, torch.zeros(0))
    save_file(state | ({name: change(tensor)} if change else {}), tmp_path / "model.safetensors")
    refusal(tmp_path, message)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 18000000\n"
NO_WEIGHTS = [POINTER, b"<!DOCTYPE html>\n<html><body>404</body></html>", b"PK\x03\x04" + bytes(100), b"", bytes(8)]
NO_WEIGHTS += [(200_000).to_bytes(8, "little") + b"[" * 200_000]
NO_CONFIGURATIONS = [b"[" * 200_000, b"", b"[]", b"5", b"1" * 5000, b"\xff\xfe", b'{"sample_rat": 1}']
NO_CONFIGURATIONS += [b'{"\\u001b[31m": 1}', b'{"' + b"k" * 10**5 + b'":1}']
BOTH, WEIGHTS, CONFIGURATION = ("model.safetensors", "config.json"), ("model.safetensors",), ("config.json",)


@pytest.mark.parametrize(
    ("names", "contents", "message"),
    [
        (BOTH, [None], "lacks {name}"),
        (WEIGHTS, NO_WEIGHTS, "{name} cannot be used: "),
        (WEIGHTS, [(2).to_bytes(8, "little") + b"{}"], "{name}.* missing encoder"),
        (CONFIGURATION, NO_CONFIGURATIONS, "{name} cannot be used"),
    ],
    ids=["absent", "no weights", "no tensor", "no configuration"],
)
def test_what_came_in_place_of_a_file_is_named(
    tmp_path: Path, model: Codec, names: tuple[str, ...], contents: list[bytes | None], message: str
) -> None:
    for name in names:
        model.save_pretrained(tmp_path)
        for content in contents:
            (tmp_path / name).unlink()
            if content is not None:
                (tmp_path / name).write_bytes(content)
            assert name in refusal(tmp_path, message.format(name=name))


HUGE: list[dict[str, Any]] = [
    {"encoder": {"widths": [2**16] * 3}},
    {"decoder": {"n_fft": 8160}},
    {"quantizer": {"codebook_size": 2**32 - 1, "codebook_dim": 2**16}},
]


@pytest.mark.parametrize("change", HUGE, ids=str)
def test_a_configuration_of_another_size_builds_nothing(model: Codec, tmp_path: Path, change: dict[str, Any]) -> None:
    """Every number is within its bounds, but the file holds no such tensors: layers would take up to exabytes."""
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    ((key, value),) = change.items()
    config[key] = config[key] | value if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(config))
    refusal(tmp_path, r"model\.safetensors.*config\.json")


@pytest.mark.slow
def test_an_outline_loads_no_compiler(tiny_model_folder: Path) -> None:
    """Operations on the meta device do, which would take longer than loading the model."""
    code = f"import sys; from codec import Codec; Codec.from_pretrained({str(tiny_model_folder)!r})\n"
    code += "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    assert python(code).stdout == "[]\n"
