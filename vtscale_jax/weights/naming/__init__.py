"""Which tensor of a checkpoint is which of our parameters, and how it gets there."""
