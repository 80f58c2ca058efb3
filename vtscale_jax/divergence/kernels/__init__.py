"""Three ways to the sums over pairs of positions: enumerated, tiled, fused."""
