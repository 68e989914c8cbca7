"""Where models come from: those inside the package, folders, and the hub."""

from __future__ import annotations

import os
from pathlib import Path

from codec.config import CodecConfig, from_dict
from codec.errors import CodecError, install_command
from codec.files import read_json

DEFAULT_MODEL = "speech-24khz"
ALIAS = "default"  # another name of DEFAULT_MODEL
FILES = ("config.json", "model.safetensors")
DISCRIMINATORS = "discriminator.safetensors"  # from which training can go on; not part of a model
CHECKSUM, BASE = "sha256", "base"  # keys of the metadata of model.safetensors
STEP = ".step"  # end of the name of an int8 matrix's scale: the value of the integer 1 in each row


class ModelError(CodecError):
    """A model that cannot be found or loaded; the message says what to do."""


def shipped_models() -> list[str]:
    """Names of the models inside the package, each with its version: ``NAME-vN``."""
    here = Path(__file__).parent
    return sorted(folder.name for folder in here.iterdir() if (folder / "config.json").is_file())


def shipped_name(name: str) -> str | None:
    """The shipped model of a name (its own, "default", or one without version, for the newest); or None."""
    name = DEFAULT_MODEL if name == ALIAS else name
    versions = [shipped for shipped in shipped_models() if name in (shipped, shipped.rpartition("-v")[0])]
    return max(versions, key=lambda shipped: int(shipped.rpartition("-v")[-1]), default=None)


def find_model(model: str | Path) -> Path:
    """The folder of a model by shipped name, path, or hub id ``owner/name[@revision]``; a ModelError if there is none."""
    folder, name = Path(model), str(model)
    shipped = shipped_name(name)
    if shipped is not None:
        return Path(__file__).parent / shipped
    if not os.path.isdir(folder):
        folder = _download(name)
    missing = [file for file in FILES if not (folder / file).is_file()]
    if missing:
        raise ModelError(f"{folder} is not a model folder: it lacks {' and '.join(missing)}")
    return folder


def read_model(model: str | Path) -> tuple[Path, CodecConfig, str]:
    """The folder of a model, see :func:`find_model`, its configuration, and its name in ``.codes`` files.

    Raises:
        ModelError: no such model, or its ``config.json`` cannot be used.
    """
    folder = find_model(model)
    local = os.path.isdir(model) or shipped_name(str(model)) is not None
    try:
        values = read_json(folder / "config.json")
        if isinstance(values, dict) and "architecture" in values:
            raise CodecError("codec-export or a CodecModel wrote it; give a Codec's folder (.codec.save_pretrained)")
        config = from_dict(CodecConfig, values)
    except CodecError as error:
        raise ModelError(f"{folder / 'config.json'} cannot be used: {error}") from None
    return folder, config, folder.resolve().name if local else str(model)


def _download(name: str) -> Path:
    repo, _, revision = name.partition("@")
    if repo.count("/") != 1 or repo.startswith(("/", ".", "~")) or not all(repo.split("/")):
        shipped = ", ".join(shipped_models())
        raise ModelError(f"no model {name!r}: give a shipped name ({shipped}), a model folder, or a hub id owner/name")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelError(
            f"there is no folder {name!r}; to fetch it from the hub: {install_command('huggingface_hub')}"
        ) from None
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(FILES)))
    except Exception as error:  # network, HTTP and validation errors share no base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"there is no folder {name!r}, and the hub does not give it either: {reason}") from None
