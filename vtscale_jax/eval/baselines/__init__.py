"""LLaVA-1.5 and what reduces its vision tokens: the baselines, on one harness."""
