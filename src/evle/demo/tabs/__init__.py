"""The tabs of the page, one per file: each builds its controls and answers what a visitor asks."""
