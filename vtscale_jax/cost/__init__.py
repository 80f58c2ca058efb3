"""What a step costs, by arithmetic: floating-point operations and memory traffic."""
