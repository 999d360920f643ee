"""What a store is on the disk or behind an address: its files, reading and writing them, views, indexes, copies."""
