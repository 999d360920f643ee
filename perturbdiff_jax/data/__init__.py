"""Cells from a user's files to batches: prepare.py makes a store, store.py opens it, loader.py draws sets from it."""
