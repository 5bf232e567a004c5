"""The search for a swap-probability schedule: a deterministic Optuna study, run by worker processes."""
