"""Questions with answers, written by a language model from detailed descriptions (the
paper's Appendix B; spec: data, 8)."""
