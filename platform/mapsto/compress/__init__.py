"""Smaller and faster models: export, quantize, measure, choose. No Ray."""
