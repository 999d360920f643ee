"""The parts of gene_vocabulary.py: sources and their names, composites, moments of a composite, the account."""
