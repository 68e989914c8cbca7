"""Measuring a codec over many files, beside others, and showing what was found."""
