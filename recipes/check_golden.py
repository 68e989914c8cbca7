"""Compare the tensors of a port with those that ``codec-export MODEL OUT --golden AUDIO`` wrote; needs numpy only.

    python recipes/check_golden.py OUT mine.safetensors

``mine.safetensors`` holds any of the tensors of ``OUT/golden.json`` under the same names. The exit code is 1 if one
differs, or has another name.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file by name, of numbers as numpy has them."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    entries = {name: entry for name, entry in json.loads(data[8:start]).items() if name != "__metadata__"}
    types = {name: f"<{e['dtype'][0].lower()}{int(e['dtype'][1:]) // 8}" for name, e in entries.items()}
    parts = {name: data[start:][slice(*entry["data_offsets"])] for name, entry in entries.items()}
    return {name: np.frombuffer(parts[name], types[name]).reshape(e["shape"]) for name, e in entries.items()}


if len(sys.argv) != 3:
    sys.exit("usage: python recipes/check_golden.py OUT mine.safetensors")
golden, mine = Path(sys.argv[1]), read(Path(sys.argv[2]))
reference, wrong = read(golden / "golden.safetensors"), 0
if unknown := ", ".join(sorted(mine.keys() - reference.keys())) or "at all" * (not mine):
    sys.exit(f"{sys.argv[2]}: no tensors that {golden / 'golden.json'} has: {unknown}")
for name, entry in json.loads((golden / "golden.json").read_text())["tensors"].items():
    if name in mine and mine[name].shape != reference[name].shape:
        wrong += 1
        print(f"WRONG {name}: shape {list(mine[name].shape)}, not {entry['shape']}")
    elif name in mine:
        distance = np.abs(mine[name] - reference[name])
        codes = "share_of_differing" in entry
        limit = entry["share_of_differing"] if codes else entry["largest_difference"]
        value = (distance > 0).mean() if codes else distance.max()
        wrong += not value <= limit
        print(f"{'ok' if value <= limit else 'WRONG'} {name}: {value:.2e}, limit {limit:.2e}")
sys.exit(wrong > 0)
