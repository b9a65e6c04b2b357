"""mapsto (the arrow ↦): from a bucket of images to a served model, on Ray."""

__version__ = "0.1.0"
