"""Tasks, one file each: the configuration beside the class. A new one is a file here and a line in core/registry.py."""
