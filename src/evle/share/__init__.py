"""What a model needs to leave the machine that trained it: the facts of its run, a card, and an upload."""
