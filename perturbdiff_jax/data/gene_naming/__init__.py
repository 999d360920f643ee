"""What genes are called: names of a source, turned by a table from one naming into another, and which can be used."""
