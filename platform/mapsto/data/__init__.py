"""Data sets: how images come in, are checked, and are read back."""
