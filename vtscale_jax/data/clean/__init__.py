"""Cleaning of document-to-markdown texts (the paper's Appendix B; spec: data, 7)."""
