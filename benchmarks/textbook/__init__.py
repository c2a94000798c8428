"""EVE and VLE written plainly on stock modules of torch and transformers, to measure our models against.

Each shares its weights with one of our models, and a test compares outputs and gradients.
"""
