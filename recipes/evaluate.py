"""Measure a model, folders of reconstructions and classical codecs on a manifest: the command codec-evaluate.

python recipes/evaluate.py --manifest manifests/dev.jsonl --out report
"""

import sys

from codec.evaluation.commands import evaluate_main

if __name__ == "__main__":
    sys.exit(evaluate_main())
