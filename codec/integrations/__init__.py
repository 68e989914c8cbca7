"""The codec as other libraries expect it: one file per library, which it imports; nothing else here imports these files."""
