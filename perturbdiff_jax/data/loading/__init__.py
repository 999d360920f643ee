"""From a store to batches: which cells a step sees, bringing them into memory, packing them."""
