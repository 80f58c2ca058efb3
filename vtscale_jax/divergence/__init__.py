"""How the hidden states of two branches part: measured, bounded, drawn (paper §3)."""
