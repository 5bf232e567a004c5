"""Interactive distillation: which blocks belong together, when they are swapped, and the hybrid network."""
