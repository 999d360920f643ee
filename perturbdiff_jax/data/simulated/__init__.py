"""The paper's four data sets in small, simulated in one world: forms.py, sources.py."""
