"""Data: sources, splits, the canonical store on disk, and batches that live on the device."""
