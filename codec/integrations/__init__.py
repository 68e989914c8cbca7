"""Other libraries' faces of the codec: one file per library, which it imports; nothing else here imports these files."""
