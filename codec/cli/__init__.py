"""The commands codec-encode, codec-decode and codec-info."""
