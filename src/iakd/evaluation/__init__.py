"""Measures a finished model: accuracy, calibration, cost and speed; and checks that an imported one works."""
