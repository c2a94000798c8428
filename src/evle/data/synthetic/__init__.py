"""Synthetic worlds: scenes of shapes, and scenes of cut-outs."""
