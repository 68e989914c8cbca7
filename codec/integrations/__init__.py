"""The codec as other libraries expect it: one file per library; nothing else in this package imports these files."""
