"""Worlds that draw themselves: scenes of shapes, and scenes of cut-outs."""
