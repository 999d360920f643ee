"""Reading what the released code wrote: its checkpoints, the names of their tensors, their settings."""
