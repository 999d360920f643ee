"""The passes of `perturbdiff prepare`: who the cells are, what the numbers are, sorting, writing, going on."""
