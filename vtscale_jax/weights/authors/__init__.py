"""The authors' checkpoint folders, in and out."""
