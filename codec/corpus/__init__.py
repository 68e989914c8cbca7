"""Corpora of speech: manifests, and how they are made."""
