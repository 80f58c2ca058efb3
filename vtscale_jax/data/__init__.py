"""Training data: from downloads to records that training reads.

`sources` convert the rows of the public sets; `prepare` turns one file of them into a
verified folder; `report` says what was left out and why. The host does all of it: no
file here imports JAX when it is loaded.
"""
