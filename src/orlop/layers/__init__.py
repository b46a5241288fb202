"""Layers: a tar in, entries out, and back; what a layer means is decided here and nowhere else."""
